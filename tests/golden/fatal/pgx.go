// For target default, advised by connection-health-sidecar. Status: confirmed.
// Resting connections live 19.5 s and are dead by 20.1 s, in plain sight: the server says why and
// closes. TCP keepalives do not restart this limit.
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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{ // Go 1.23; without it, Go sends one after 15 s of silence
		Enable:   true,
		Idle:     7 * time.Second,
		Interval: 7 * time.Second,
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
	// three together are the 9 s advised.
	config.MaxConnLifetime = 6300 * time.Millisecond
	config.MaxConnLifetimeJitter = 700 * time.Millisecond
	config.HealthCheckPeriod = 2 * time.Second
	// Ping what rested longer before handing it out, at one round trip (pgx 5.7.6).
	config.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
		return params.IdleDuration.Seconds() > 2.5
	}
	// Without it nothing ends a ping on a silently dropped connection but TCP_USER_TIMEOUT (pgx 5.8).
	config.PingTimeout = 5 * time.Second
	// A pooler on the path forgets prepared statements.
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.ConnConfig.DialFunc = dialer.DialContext
	return pgxpool.NewWithConfig(ctx, config)
}
