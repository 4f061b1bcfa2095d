//! A list that is appended to holds each of its transactions once, all of them seen, and is what was seen earlier, longer.

use super::Snapshot;
use crate::universe::history::LISTS;
use std::collections::{BTreeMap, BTreeSet};

/// What does not hold, if anything. `longest` keeps the longest form of each list that was ever seen.
pub fn broken(seen: &Snapshot, longest: &mut BTreeMap<String, String>) -> Option<String> {
    for (id, value) in seen.table(LISTS) {
        let list = &value[0];
        let entries: Vec<&str> = list.split(',').filter(|entry| !entry.is_empty()).collect();
        let distinct: BTreeSet<&str> = entries.iter().copied().collect();
        if distinct.len() != entries.len() {
            return Some(format!("lists: {id} holds a transaction twice: {list}"));
        }
        let hidden = entries.iter().find(|e| e.parse().is_ok_and(|number| !seen.markers.contains_key(&number)));
        if let Some(hidden) = hidden {
            return Some(format!("lists: {id} holds {hidden}, which is not seen"));
        }
        let known = longest.entry(id.to_owned()).or_default();
        if !known.starts_with(list.as_str()) && !list.starts_with(known.as_str()) {
            return Some(format!("lists: {id} reads {list}, and read {known} before"));
        }
        if list.len() > known.len() {
            known.clone_from(list);
        }
    }
    None
}
