CREATE TABLE tenants (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    weight  REAL NOT NULL DEFAULT 1.0 CHECK (weight > 0)
);

CREATE TABLE usage (
    tenant_id   INTEGER NOT NULL REFERENCES tenants (id),
    model       TEXT NOT NULL,
    finished_at TIMESTAMP NOT NULL,
    ran_ms      REAL NOT NULL
);

CREATE INDEX usage_by_tenant ON usage (tenant_id, finished_at);

INSERT INTO tenants (name, weight) VALUES ('default', 1.0), ('research', 2.0), ('support', 4.0);

SELECT t.name, u.model, COUNT(*) AS tasks, SUM(u.ran_ms) / 1000.0 AS seconds
FROM usage AS u
JOIN tenants AS t ON t.id = u.tenant_id
WHERE u.finished_at >= DATE('now', '-7 days')
GROUP BY t.name, u.model
HAVING SUM(u.ran_ms) > 0
ORDER BY seconds DESC;
