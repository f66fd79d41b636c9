// For target default, advised by connection-health-sidecar. Status: verified.
// Resting connections live 343.2 s and are dead by 350.2 s, silently: the next query gets no answer
// at all.
// Warning: Pre-ping alone does not protect: the ping itself hangs.
// Not here: MaxConnIdleTime, which only shrinks the pool to MinConns.

//go:build unix

package db

import (
	"context"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{ // Go 1.23; without it, Go sends one after 15 s of silence
		Enable:   true,
		Idle:     120 * time.Second,
		Interval: 15 * time.Second,
		Count:    3,
	},
	// TCP_USER_TIMEOUT, in milliseconds, ends a wait for an answer that never comes. Linux only.
	Control: func(network, _ string, conn syscall.RawConn) (err error) {
		if runtime.GOOS != "linux" || !strings.HasPrefix(network, "tcp") {
			return nil
		}
		const tcpUserTimeout = 0x12
		failed := conn.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, 5000)
		})
		if failed != nil {
			return failed
		}
		return err
	},
}

// NewPool opens a pool on DATABASE_URL.
func NewPool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	// Since connect. Up to the jitter is added, and pgx before 5.10 looks only once every HealthCheckPeriod: all
	// three together are the 171 s advised.
	config.MaxConnLifetime = 117 * time.Second
	config.MaxConnLifetimeJitter = 12 * time.Second
	config.HealthCheckPeriod = 42 * time.Second
	// pgxpool pings what rested over a second before handing it out, at one round trip.
	// Without it nothing ends a ping on a silently dropped connection but TCP_USER_TIMEOUT (pgx 5.8).
	config.PingTimeout = 5 * time.Second
	config.ConnConfig.DialFunc = dialer.DialContext
	return pgxpool.NewWithConfig(ctx, config)
}
