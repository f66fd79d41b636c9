// For target default, advised by connection-health-sidecar. Status: confirmed.
// Resting connections live 19.5 s and are dead by 20.1 s, in plain sight: the server says why and
// closes. TCP keepalives do not restart this limit.
// Not here: Connection Idle Lifetime, which only shrinks the pool to Minimum Pool Size. Npgsql
// tests no connection before use and cannot set TCP_USER_TIMEOUT: Command Timeout (30 s) is what
// ends a hang.
const string ConnectionHealth =
    // Since connect, looked at when a connection leaves the pool.
    "Connection Lifetime=9;" +
    // Pings connections at rest, in the pool too, which restarts every idle timer on the path.
    "Keepalive=7;" +
    // TCP keepalive, in seconds (before Npgsql 5: milliseconds, and only on Windows).
    "Tcp Keepalive Time=7;" +
    "Tcp Keepalive Interval=7;" +
    // A pooler on the path forgets prepared statements.
    "Max Auto Prepare=0;" +
    "No Reset On Close=true;";
