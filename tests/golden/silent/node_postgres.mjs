// For target default, advised by connection-health-sidecar. Status: verified.
// Resting connections live 343.2 s and are dead by 350.2 s, silently: the next query gets no answer
// at all.
// Warning: Pre-ping alone does not protect: the ping itself hangs.
// Not here: idleTimeoutMillis, which spares `min` connections. pg-pool tests no connection before
// use, and Node cannot set TCP_USER_TIMEOUT: `query_timeout` (milliseconds) is what ends a hang,
// and every query that takes as long.
import pg from "pg";

export const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  // Seconds since connect. A timer ends idle connections, `min` or not.
  maxLifetimeSeconds: 171,
  // TCP keepalive after so many milliseconds of silence; interval and count are Node's (1 s, 10).
  keepAlive: true,
  keepAliveInitialDelayMillis: 120000,
});

// Without a listener, an idle connection that dies ends the process.
pool.on("error", (error) => console.warn("idle connection lost:", error.message));
