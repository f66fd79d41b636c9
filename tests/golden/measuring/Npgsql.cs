// For target default, advised by connection-health-sidecar. Status: measuring.
// Nothing is proven yet: these settings are cautious and grow with the evidence.
// Not here: Connection Idle Lifetime, which only shrinks the pool to Minimum Pool Size. Npgsql
// tests no connection before use and cannot set TCP_USER_TIMEOUT: Command Timeout (30 s) is what
// ends a hang.
const string ConnectionHealth =
    // Since connect, looked at when a connection leaves the pool.
    "Connection Lifetime=2;" +
    // Pings connections at rest, in the pool too, which restarts every idle timer on the path.
    "Keepalive=2;" +
    // TCP keepalive, in seconds (before Npgsql 5: milliseconds, and only on Windows).
    "Tcp Keepalive Time=30;" +
    "Tcp Keepalive Interval=15;";
