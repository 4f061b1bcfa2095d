//! Exactly once: a counter shows as many raises as transactions are seen that raised it.

use super::Snapshot;
use crate::universe::history::{COUNTERS, LISTS};

/// What does not hold, if anything. Whoever raises a counter appends itself to the list of the same name.
pub fn broken(seen: &Snapshot) -> Option<String> {
    seen.table(COUNTERS).find_map(|(id, value)| {
        let list = seen.rows.get(&(LISTS, id.to_owned())).map_or("", |list| &list[0]);
        let raises = list.split(',').filter(|entry| !entry.is_empty()).count();
        (value[0] != raises.to_string()).then(|| format!("counters: {id} shows {}, raised {raises} times", value[0]))
    })
}
