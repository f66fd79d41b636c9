// For target default, advised by connection-health-sidecar. Status: verified.
// Resting connections live 343.2 s and are dead by 350.2 s, silently: the next query gets no answer
// at all.
// Warning: Pre-ping alone does not protect: the ping itself hangs.
// Not here: SetConnMaxIdleTime, which a connection younger than this does not need. database/sql
// itself tests no connection. pgx below it tests what rested over a second, and has it replaced;
// lib/pq does not.

//go:build unix

package db

import (
	"database/sql"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
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

// Open opens a pool on DATABASE_URL.
func Open() (*sql.DB, error) {
	config, err := pgx.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	config.DialFunc = dialer.DialContext
	pool := stdlib.OpenDB(*config)
	// Since connect, looked at whenever a connection is taken from the pool.
	pool.SetConnMaxLifetime(171 * time.Second)
	return pool, nil
}
