// For target default, advised by connection-health-sidecar. Status: confirmed.
// Resting connections live 19.5 s and are dead by 20.1 s, in plain sight: the server says why and
// closes. TCP keepalives do not restart this limit.
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

// Open opens a pool on DATABASE_URL.
func Open() (*sql.DB, error) {
	config, err := pgx.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	// A pooler on the path forgets prepared statements.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.DialFunc = dialer.DialContext
	pool := stdlib.OpenDB(*config)
	// Since connect, looked at whenever a connection is taken from the pool.
	pool.SetConnMaxLifetime(9 * time.Second)
	return pool, nil
}
