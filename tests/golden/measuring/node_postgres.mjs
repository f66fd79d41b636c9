// For target default, advised by connection-health-sidecar. Status: measuring.
// Nothing is proven yet: these settings are cautious and grow with the evidence.
// Not here: idleTimeoutMillis, which spares `min` connections. pg-pool tests no connection before
// use, and Node cannot set TCP_USER_TIMEOUT: `query_timeout` (milliseconds) is what ends a hang,
// and every query that takes as long.
import pg from "pg";

export const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  // Seconds since connect. A timer ends idle connections, `min` or not.
  maxLifetimeSeconds: 2,
  // TCP keepalive after so many milliseconds of silence; interval and count are Node's (1 s, 10).
  keepAlive: true,
  keepAliveInitialDelayMillis: 30000,
});

// Without a listener, an idle connection that dies ends the process.
pool.on("error", (error) => console.warn("idle connection lost:", error.message));
