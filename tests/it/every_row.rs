//! Every row as it was: all built-in types and those that people make, odd names, partitions, inheritance, identities. A
//! row that was copied and one that was streamed print the same, and as PostgreSQL itself prints them.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::Postgres;
use futures::TryStreamExt;
use serde_json::Value;

/// Columns of every type, and three rows of values: ordinary ones, the ends of their ranges, and NULL or empty ones.
const COLUMNS: &[(&str, [&str; 3])] = &[
    ("bool", ["true", "false", "NULL"]),
    ("int2", ["-5", "32767", "-32768"]),
    ("int4", ["7", "2147483647", "-2147483648"]),
    ("int8", ["9007199254740993", "9223372036854775807", "-9223372036854775808"]),
    ("float4", ["0.1", "'Infinity'", "'-0'"]),
    ("float8", ["0.1::float8 + 0.2", "'NaN'", "'-Infinity'"]),
    ("numeric", ["12345678901234567890.000100", "'NaN'", "repeat('9', 1000)::numeric / 7"]),
    ("numeric(1000,999)", ["1.5", "-0.1", "NULL"]),
    ("money", ["'$1,234.50'", "'-$92233720368547758.08'", "NULL"]),
    ("text", ["E'tab\\t nl\\n cr\\r back\\\\slash \\\\N \\\\. \"q\" ,ü€😀'", "''", "'\\.'"]),
    ("varchar(9)", ["'vär'", "''", "NULL"]),
    ("char(4)", ["'ab'", "''", "NULL"]),
    ("\"char\"", ["'x'", "''", "NULL"]),
    ("name", ["'a name'", "''", "NULL"]),
    ("bytea", ["'\\x00ff5c0a'", "''", "NULL"]),
    ("date", ["'2024-02-29'", "'4713-01-01 BC'", "'infinity'"]),
    ("time", ["'12:34:56.789'", "'24:00'", "NULL"]),
    ("timetz", ["'12:34:56+05:30'", "'00:00-15:59'", "NULL"]),
    ("timestamp", ["'2024-02-29 01:02:03.000001'", "'4713-01-01 00:00 BC'", "'-infinity'"]),
    ("timestamptz", ["'2024-02-29 01:02:03+09'", "'294276-12-31 23:59:59.999999+00'", "'0044-03-15 12:00+00 BC'"]),
    ("interval", ["'1 year 2 days -3:00'", "'-178000000 years'", "'0'"]),
    ("json", ["'{\"b\":  1,\n \"a\": [1, 2.50], \"a\": null}'", "'1e300'", "'\"ü\\u0041\"'"]),
    ("jsonb", ["'{\"b\":  1, \"a\": [1, 2.50]}'", "'12345678901234567890.12345'", "'null'"]),
    ("jsonpath", ["'$.a[*] ? (@ > 1)'", "'$'", "NULL"]),
    ("xml", ["'<a b=\"c\">d</a>'", "''", "NULL"]),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "NULL", "NULL"]),
    ("inet", ["'10.0.0.1/8'", "'::1'", "NULL"]),
    ("cidr", ["'10.0.0.0/8'", "'2001:db8::/32'", "NULL"]),
    ("macaddr", ["'08:00:2b:01:02:03'", "NULL", "NULL"]),
    ("macaddr8", ["'08:00:2b:01:02:03:04:05'", "NULL", "NULL"]),
    ("bit(5)", ["B'10110'", "B'00000'", "NULL"]),
    ("varbit", ["B'101'", "B''", "NULL"]),
    ("pg_lsn", ["'16/B374D848'", "'0/0'", "NULL"]),
    ("point", ["'(1,-0.5)'", "'(NaN,Infinity)'", "NULL"]),
    ("line", ["'{1,2,3}'", "NULL", "NULL"]),
    ("lseg", ["'[(0,0),(1,1)]'", "NULL", "NULL"]),
    ("box", ["'(1,1),(0,0)'", "NULL", "NULL"]),
    ("path", ["'((0,0),(1,1))'", "'[(0,0)]'", "NULL"]),
    ("polygon", ["'((0,0),(1,1),(1,0))'", "NULL", "NULL"]),
    ("circle", ["'<(0,0),2>'", "NULL", "NULL"]),
    ("tsvector", ["'a:1A ''b c'':2'", "''", "NULL"]),
    ("tsquery", ["'a & !b'", "''", "NULL"]),
    ("oid", ["4294967295", "0", "NULL"]),
    ("regclass", ["'pg_catalog.pg_class'", "NULL", "NULL"]),
    ("xid8", ["'18446744073709551615'", "NULL", "NULL"]),
    ("pg_snapshot", ["'10:20:10,14'", "NULL", "NULL"]),
    ("int4[]", ["'{1,NULL,3}'", "'{}'", "'[0:1][2:2]={{1},{2}}'"]),
    ("text[]", ["ARRAY['a,b', 'c\"d', 'NULL', '', NULL, '{}']", "'{}'", "NULL"]),
    ("int4range", ["'[1,5)'", "'empty'", "'(,)'"]),
    ("tstzrange", ["'[2024-01-01 00:00+09,infinity)'", "NULL", "NULL"]),
    ("int8multirange", ["'{[1,5),[7,9)}'", "'{}'", "NULL"]),
    ("mood", ["'so ''so'''", "'sad'", "NULL"]),
    ("mood[]", ["'{sad,NULL}'", "'{}'", "NULL"]),
    ("positive", ["7", "1", "NULL"]),
    ("pair", ["ROW(1, 'x \"y\", z')", "ROW(NULL, '')", "NULL"]),
    ("pair[]", ["ARRAY[ROW(1, NULL)::pair]", "'{}'", "NULL"]),
    ("spans", ["'[1.5,2.5]'", "'empty'", "NULL"]),
    ("hstore", ["'a=>1, \"b c\"=>NULL'", "''", "NULL"]),
    ("citext", ["'CiTe'", "''", "NULL"]),
    ("ltree", ["'Top.Science'", "''", "NULL"]),
    ("cube", ["'(1,2),(3,4)'", "NULL", "NULL"]),
];

/// The table of every type, as SQL names it.
pub(crate) const NAME: &str = "\"Odd schema\".\"Jede Säule \"\"x\"\"\"";

/// Creates it, empty, with the types that it needs; answers its name.
pub(crate) async fn create(server: &Postgres) -> &'static str {
    let columns = COLUMNS.iter().enumerate().map(|(n, (kind, _))| format!("c{n:02} {kind}"));
    let columns = columns.collect::<Vec<_>>().join(", ");
    server
        .execute(&format!(
            "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube;
             CREATE TYPE mood AS ENUM ('sad', 'so ''so'''); CREATE DOMAIN positive AS int4 CHECK (VALUE > 0);
             CREATE TYPE pair AS (a int, b text); CREATE TYPE spans AS RANGE (subtype = numeric);
             CREATE SCHEMA \"Odd schema\"; CREATE TABLE {NAME} (id int PRIMARY KEY, {columns})"
        ))
        .await;
    NAME
}

/// The three rows' values, with ids from `first` on.
pub(crate) fn values(first: usize) -> String {
    let row = |number: usize| {
        let cells = COLUMNS.iter().map(|(kind, values)| format!("({})::{kind}", values[number]));
        format!("({}, {})", first + number, cells.collect::<Vec<_>>().join(", "))
    };
    (0..3).map(row).collect::<Vec<_>>().join(", ")
}

/// A table's rows as COPY writes them in UTC, sorted.
async fn copied(server: &Postgres, query: &str) -> Vec<String> {
    let session = server.connect().await;
    session.batch_execute("SET timezone = 'UTC'").await.unwrap();
    let copy = session.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT csv)")).await.expect("a copy begins");
    let pieces: Vec<_> = copy.try_collect().await.expect("a copy ends");
    sorted(&String::from_utf8(pieces.concat()).unwrap())
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Waits until a table is, at `safe` and at `latest`, what the server prints.
async fn until_as_printed(daemon: &Daemon, server: &Postgres, table: &str, query: &str) {
    let expected = copied(server, query).await;
    for at in ["safe", "latest"] {
        let equal = || (sorted(&daemon.scan(table, at, "csv").ok()?) == expected).then_some(());
        daemon.until(&format!("{table} equals {query} at {at}"), equal).await;
    }
}

fn json(daemon: &Daemon, table: &str) -> Vec<Value> {
    let rows = daemon.scan(table, "latest", "json").unwrap();
    let mut rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(|row| row["id"].as_i64());
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_row_is_as_it_was() {
    let server = Postgres::start().await;
    create(&server).await;
    server
        .execute(&format!(
            "INSERT INTO {NAME} VALUES {};

             CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
             INSERT INTO made (a) VALUES (1), (2);

             CREATE TABLE measures (id int, day date, v float8, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
             CREATE TABLE measures_old PARTITION OF measures FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
             CREATE TABLE measures_new (v float8, id int NOT NULL, gone int, day date NOT NULL, PRIMARY KEY (day, id));
             ALTER TABLE measures_new DROP gone;
             ALTER TABLE measures ATTACH PARTITION measures_new FOR VALUES FROM ('2024-01-01') TO (MAXVALUE);
             INSERT INTO measures VALUES (1, '2023-05-05', 1.5), (2, '2024-05-05', 'NaN');

             CREATE TABLE parent (id int PRIMARY KEY, p text); CREATE TABLE child (c text, PRIMARY KEY (id)) INHERITS (parent);
             INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'p', 'c');

             CREATE TABLE named (code citext NOT NULL, part numeric NOT NULL, body text, UNIQUE (part, code));
             ALTER TABLE named REPLICA IDENTITY USING INDEX named_part_code_key;
             INSERT INTO named VALUES ('A', 1.0, 'x'), ('B', 2, 'y');

             CREATE TABLE events (at int, what text); INSERT INTO events VALUES (1, 'same'), (1, 'same'), (2, NULL);
             CREATE TABLE no_columns (); INSERT INTO no_columns DEFAULT VALUES;
             ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'; ALTER DATABASE postgres SET datestyle = 'SQL, DMY';
             ALTER DATABASE postgres SET intervalstyle = 'iso_8601'; ALTER DATABASE postgres SET extra_float_digits = 0;
             ALTER DATABASE postgres SET bytea_output = 'escape'; ALTER DATABASE postgres SET xmlbinary = 'hex';
             CREATE PUBLICATION untorn FOR ALL TABLES WITH (publish_via_partition_root = true);
             CREATE PUBLICATION leaves FOR TABLE measures",
            values(1)
        ))
        .await;
    // A second stream of the same server takes the partitions one by one.
    let source = source_of(std::slice::from_ref(&server));
    let leaves = source.replace("shard-a", "leaves").replace("shard_a", "leaves").replace("\"untorn\"", "\"leaves\"");
    let leaves = leaves.replace("[source]\nkind = \"postgres\"\n", "");
    let mut daemon = Daemon::new(&format!("{source}{leaves}"));
    daemon.start();
    daemon.until_ready().await;

    let odd = "Odd schema.Jede Säule \"x\"";
    let quoted = "\"Odd schema\".\"Jede Säule \"\"x\"\"\"";
    server
        .execute(&format!(
            "INSERT INTO {quoted} VALUES {};
             INSERT INTO made (a) VALUES (3); UPDATE made SET a = 7 WHERE id = 1;
             UPDATE measures SET day = '2024-06-06' WHERE id = 1; INSERT INTO measures VALUES (3, '2022-02-02', -0.0);
             DELETE FROM measures WHERE id = 2;
             UPDATE parent SET p = 'both'; INSERT INTO child VALUES (3, 'q', 'd');
             UPDATE named SET code = 'a' WHERE code = 'A'; UPDATE named SET part = 2.00 WHERE part = 2;
             INSERT INTO events SELECT 1, 'same' FROM generate_series(1, 3); INSERT INTO no_columns DEFAULT VALUES;
             INSERT INTO events SELECT 3, string_agg(md5(n::text), '') FROM generate_series(1, 300000) n",
            values(11)
        ))
        .await;
    let printed = "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex'";
    for setting in printed.split("; ") {
        server.execute(&setting.replace("SET ", "ALTER DATABASE postgres SET ")).await;
    }
    until_as_printed(&daemon, &server, odd, &format!("SELECT * FROM {quoted}")).await;
    until_as_printed(&daemon, &server, "public.made", "SELECT id, a FROM made").await;
    until_as_printed(&daemon, &server, "public.measures", "SELECT * FROM measures").await;
    until_as_printed(&daemon, &server, "public.measures_old", "SELECT * FROM measures_old").await;
    until_as_printed(&daemon, &server, "public.measures_new", "SELECT * FROM measures_new").await;
    until_as_printed(&daemon, &server, "public.parent", "SELECT * FROM ONLY parent").await;
    until_as_printed(&daemon, &server, "public.child", "SELECT * FROM child").await;
    until_as_printed(&daemon, &server, "public.named", "SELECT * FROM named").await;
    until_as_printed(&daemon, &server, "public.events", "SELECT * FROM events").await;
    until_as_printed(&daemon, &server, "public.no_columns", "SELECT * FROM no_columns").await;

    let rows = json(&daemon, odd);
    assert_eq!(rows.len(), 6);
    let cell = |row: &Value, kind: &str| {
        let place = COLUMNS.iter().position(|(name, _)| *name == kind).unwrap();
        row[format!("c{place:02}")].clone()
    };
    for (copied, streamed) in rows.iter().zip(&rows[3..]) {
        for (kind, _) in COLUMNS {
            assert_eq!(cell(copied, kind), cell(streamed, kind), "{kind}");
        }
    }
    let expected = [
        (0, "int8", "9007199254740993"),
        (0, "float4", "0.1"),
        (0, "float8", "0.30000000000000004"),
        (1, "float4", "\"Infinity\""),
        (2, "float4", "-0.0"),
        (1, "float8", "\"NaN\""),
        (0, "numeric", "\"12345678901234567890.000100\""),
        (0, "timestamptz", "\"2024-02-28T16:02:03+00:00\""),
        (2, "timestamptz", "\"-0043-03-15T12:00:00+00:00\""),
        (2, "date", "\"infinity\""),
        (0, "bytea", "\"\\\\x00ff5c0a\""),
        (0, "positive", "7"),
        (0, "interval", "\"1 year 2 days -03:00:00\""),
        (0, "int4[]", "\"{1,NULL,3}\""),
        (0, "mood", "\"so 'so'\""),
        (0, "hstore", "\"\\\"a\\\"=>\\\"1\\\", \\\"b c\\\"=>NULL\""),
    ];
    let printed = expected.map(|(row, kind, _)| (row, kind, cell(&rows[row], kind).to_string()));
    assert_eq!(printed, expected.map(|(row, kind, text)| (row, kind, text.to_owned())));
    assert!(daemon.terminate().success(), "{}", daemon.log());
}
