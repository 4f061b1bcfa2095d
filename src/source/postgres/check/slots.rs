//! The slot: whether it stands, in what state, and what would keep it from being created.

use super::super::connect::Target;
use super::super::error::Failure;
use super::super::relation::literal;
use super::super::slot::{self, Orphan, Server, Slot};
use super::super::sql::Sql;
use super::{Findings, raise};
use crate::limits::{PREPARED_OLD, SLOT_LOCK_TIMEOUT};

/// Looks at the slot and at what is prepared.
pub(super) async fn check(
    sql: &mut Sql,
    slot: &str,
    target: &Target,
    server: &Server,
    findings: &mut Findings,
) -> Result<(), Failure> {
    match &server.slot {
        Some(found) => standing(slot, target, found, findings),
        None => {
            let full =
                "SELECT count(*) >= current_setting('max_replication_slots')::int FROM pg_catalog.pg_replication_slots";
            if sql.text(full).await?.as_deref() == Some("t") {
                let mend = raise(sql, "max_replication_slots").await?;
                let text =
                    format!("slot {slot:?} is missing and there is no room for it (raising the limit needs a restart)");
                findings.fault(text, mend);
            }
        }
    }
    for Orphan { text, sql, age, here } in slot::prepared(sql).await? {
        if server.slot.is_none() {
            let text = format!("slot {slot:?} is missing, and creating it waits for {text}");
            // A young one is a transaction like others, and ends by itself.
            if age > SLOT_LOCK_TIMEOUT { findings.fault(text, sql) } else { findings.mention(text, sql) }
        } else if here && age > PREPARED_OLD {
            findings.mention(format!("{text}: it holds back WAL and every transaction behind it"), sql);
        }
    }
    Ok(())
}

fn standing(name: &str, target: &Target, found: &Slot, findings: &mut Findings) {
    let drop = || format!("SELECT pg_drop_replication_slot({});", literal(name));
    if found.plugin != "pgoutput" || !found.two_phase {
        let text = format!("slot {name:?} was not created by untorn (plugin {:?}); choose another name", found.plugin);
        return findings.fault(text, "");
    }
    if found.database != target.database() {
        let text = format!("slot {name:?} belongs to database {:?}; choose another name", found.database);
        return findings.fault(text, "");
    }
    match found.wal_status.as_str() {
        "lost" => findings.fault(
            format!(
                "slot {name:?} is lost: it held more WAL than max_slot_wal_keep_size; drop it, and copy this source \
                 tablet again: untorn recopy --tablet {}",
                target.name()
            ),
            drop(),
        ),
        "unreserved" => findings.mention(
            format!("slot {name:?} is about to be lost: it holds more WAL than max_slot_wal_keep_size; start untorn"),
            "",
        ),
        _ => {}
    }
    if let Some(pid) = found.active_pid {
        findings.mention(format!("slot {name:?} is being read by process {pid}"), "");
    }
}
