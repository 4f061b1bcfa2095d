//! Rows that are all new go by COPY, at a third of an upsert's cost for the server. The staged records do not say which rows
//! are new: so it is tried, under a savepoint, and a table whose rows were there is left alone for ever longer.

use super::apply::is_refusal;
use super::changes::Rows;
use super::load::copy_line;
use super::session::Session;
use super::statements::Refusal;
use bytes::Bytes;

/// Fewer rows are not worth the savepoint.
const ROWS_MIN: u64 = 64;
/// Runs of a table that go without a trial at most.
const PAUSE_MAX: u32 = 1_024;

/// How COPY fared with a table.
#[derive(Default, Debug)]
pub struct Trial {
    /// Runs that go without one.
    pause: u32,
    /// The next pause.
    next: u32,
}

impl Trial {
    /// Whether to try it with this run.
    fn is_due(&mut self) -> bool {
        let due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        due
    }

    fn ended(&mut self, well: bool) {
        self.next = if well { 0 } else { (self.next * 2).clamp(1, PAUSE_MAX) };
        self.pause = self.next;
    }
}

impl Session {
    /// Puts rows by COPY, if that may work and does; otherwise nothing is done.
    pub(super) async fn copied(&mut self, rows: &Rows) -> Result<bool, Refusal> {
        let trial = self.trials.entry(rows.shape.schema.table).or_default();
        if rows.count < ROWS_MIN || !trial.is_due() {
            return Ok(false);
        }
        let names: Vec<&str> = rows.shape.columns.iter().map(|(name, _)| name.as_str()).collect();
        let statement = format!("COPY {} ({}) FROM STDIN", rows.shape.quoted, names.join(", "));
        let refused = |failure| Refusal { failure, statement: statement.clone() };
        self.sql.text("SAVEPOINT copied").await.map_err(refused)?;
        let done = async {
            let mut copy = self.sql.copy_in(&statement).await?;
            self.sql.send_copied(&mut copy, lines(rows)).await?;
            self.sql.finish_copy(&mut copy).await
        };
        let done = done.await;
        if let Err(failure) = &done
            && !is_refusal(failure)
        {
            return Err(refused(failure.clone()));
        }
        let end = if done.is_ok() { "RELEASE copied" } else { "ROLLBACK TO copied" };
        self.sql.text(end).await.map_err(refused)?;
        self.trials.entry(rows.shape.schema.table).or_default().ended(done.is_ok());
        Ok(done.is_ok())
    }
}

/// Rows as COPY reads them.
fn lines(rows: &Rows) -> Bytes {
    let mut columns: Vec<_> = rows.columns.iter().map(super::changes::TextArray::texts).collect();
    let mut text = Vec::new();
    for _ in 0..rows.count {
        copy_line(columns.iter_mut().map(|column| column.next().flatten()), &mut text);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_ever_more_seldom() {
        let mut trial = Trial::default();
        let mut tried = Vec::new();
        for run in 0..20 {
            if trial.is_due() {
                tried.push(run);
                trial.ended(false);
            }
        }
        assert_eq!(tried, [0, 2, 5, 10, 19]);
        trial.ended(true);
        assert!(trial.is_due() && trial.is_due());
    }
}
