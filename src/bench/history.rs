//! The histories of a race: seeded, so that every run changes the same rows.

use clap::ValueEnum;

/// Rows that stand in the table before a history begins.
pub const ROWS_BEFORE: u64 = 100_000;

/// One history.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// Independent transactions of two updates.
    Small,
    /// Transactions of two updates of ten rows.
    Hot,
    /// Transactions of 1,000 updates.
    Rows,
    /// One transaction of all inserts.
    Single,
    /// Transactions of 100 inserts.
    Inserts,
    /// One transaction of 1 KiB rows: a gigabyte with a million of them.
    Wide,
}

impl Point {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Hot => "hot",
            Self::Rows => "rows",
            Self::Single => "single",
            Self::Inserts => "inserts",
            Self::Wide => "wide",
        }
    }

    /// How many rows one transaction changes.
    #[must_use]
    pub const fn rows_each(self, rows: u64) -> u64 {
        match self {
            Self::Small | Self::Hot => 2,
            Self::Rows => 1_000,
            Self::Inserts => 100,
            Self::Single | Self::Wide => rows,
        }
    }

    /// How many transactions it has.
    #[must_use]
    pub const fn transactions(self, rows: u64) -> u64 {
        rows.div_ceil(self.rows_each(rows))
    }

    /// The SQL that makes the history at the source, and its last transaction, which says that it is over.
    #[must_use]
    pub fn sql(self, rows: u64) -> [String; 2] {
        let (transactions, each) = (self.transactions(rows), self.rows_each(rows));
        let update = UPDATE;
        let body = match self {
            Self::Small => two_updates(),
            Self::Hot => format!("{update} = 1 + t % 10; {update} = 1 + (t + 5) % 10;"),
            Self::Rows => {
                format!(
                    "{update} IN (SELECT 1 + (t::int8 * 7919 + s * 31) % {ROWS_BEFORE} FROM generate_series(1, {each}) s);"
                )
            }
            Self::Inserts | Self::Single => format!(
                "INSERT INTO race SELECT {ROWS_BEFORE} + t::int8 * {each} + s, s, md5(s::text), now() \
                 FROM generate_series(1, {each}) s;"
            ),
            Self::Wide => format!(
                "INSERT INTO race SELECT {ROWS_BEFORE} + s, s, repeat(md5(s::text), 32), now() \
                 FROM generate_series(1, {each}) s;"
            ),
        };
        let history = format!(
            "DO $$ BEGIN \
             FOR t IN 1..{transactions} LOOP {body} COMMIT; END LOOP; END $$"
        );
        [history, "INSERT INTO over VALUES (1)".to_owned()]
    }
}

const UPDATE: &str = "UPDATE race SET n = n + 1, changed = changed + interval '1 s' WHERE id";

/// The updates of transaction `t`: by a formula and not `random()`, because a volatile condition is asked of every row of
/// the table.
fn two_updates() -> String {
    format!("{UPDATE} = 1 + t::int8 * 7919 % {ROWS_BEFORE}; {UPDATE} = 1 + (t::int8 * 6113 + 31) % {ROWS_BEFORE};")
}

/// The SQL that commits so many transactions of [`Point::Small`] a second, for so long.
#[must_use]
pub fn paced(transactions_per_second: u64, seconds: u64) -> String {
    let transactions = transactions_per_second * seconds;
    format!(
        "DO $$ DECLARE begun timestamptz := clock_timestamp(); BEGIN \
         FOR t IN 1..{transactions} LOOP {body} COMMIT; \
         PERFORM pg_sleep(t::float8 / {transactions_per_second} - extract(epoch FROM clock_timestamp() - begun)); \
         END LOOP; END $$",
        body = two_updates()
    )
}

/// The tables that both sides have, with the rows from before.
pub const TABLES: &str = "CREATE TABLE race (id int8 PRIMARY KEY, n int8, body text, changed timestamptz);
    CREATE TABLE over (id int PRIMARY KEY); CREATE TABLE probe (id serial PRIMARY KEY)";

/// The rows from before.
#[must_use]
pub fn rows_before() -> String {
    format!(
        "INSERT INTO race SELECT s, 0, md5(s::text), timestamptz '2026-01-01 00:00:00Z' + s * interval '1 ms' \
         FROM generate_series(1, {ROWS_BEFORE}) s"
    )
}
