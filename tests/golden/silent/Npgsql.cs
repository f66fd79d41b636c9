// For target default, advised by connection-health-sidecar. Status: verified.
// Resting connections live 343.2 s and are dead by 350.2 s, silently: the next query gets no answer
// at all.
// Warning: Pre-ping alone does not protect: the ping itself hangs.
// Not here: Connection Idle Lifetime, which only shrinks the pool to Minimum Pool Size. Npgsql
// tests no connection before use and cannot set TCP_USER_TIMEOUT: Command Timeout (30 s) is what
// ends a hang.
const string ConnectionHealth =
    // Since connect, looked at when a connection leaves the pool.
    "Connection Lifetime=171;" +
    // Pings connections at rest, in the pool too, which restarts every idle timer on the path.
    "Keepalive=120;" +
    // TCP keepalive, in seconds (before Npgsql 5: milliseconds, and only on Windows).
    "Tcp Keepalive Time=120;" +
    "Tcp Keepalive Interval=15;";
