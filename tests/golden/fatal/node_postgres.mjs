// For target default, advised by connection-health-sidecar. Status: confirmed.
// Resting connections live 19.5 s and are dead by 20.1 s, in plain sight: the server says why and
// closes. TCP keepalives do not restart this limit.
// Not here: idleTimeoutMillis, which spares `min` connections. pg-pool tests no connection before
// use, and Node cannot set TCP_USER_TIMEOUT: `query_timeout` (milliseconds) is what ends a hang,
// and every query that takes as long.
// A pooler on the path forgets prepared statements. Give no query a `name`.
import pg from "pg";

export const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  // Seconds since connect. A timer ends idle connections, `min` or not.
  maxLifetimeSeconds: 9,
  // TCP keepalive after so many milliseconds of silence; interval and count are Node's (1 s, 10).
  keepAlive: true,
  keepAliveInitialDelayMillis: 7000,
});

// Without a listener, an idle connection that dies ends the process.
pool.on("error", (error) => console.warn("idle connection lost:", error.message));
