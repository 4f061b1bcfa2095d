//! A section of the tree, and its dotted path.

use toml::{Table, Value};

/// A section, which may be absent, and its dotted path.
pub(super) struct Section<'a> {
    pub(super) table: Option<&'a Table>,
    pub(super) path: String,
}

impl<'a> Section<'a> {
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.table?.get(name)
    }

    pub(super) fn section(&self, name: &str) -> Self {
        Section { table: self.get(name).and_then(Value::as_table), path: self.key(name) }
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn names(&self, name: &str) -> Option<Vec<String>> {
        let names = self.get(name)?.as_array()?;
        Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    pub(super) fn tables(&self, name: &str) -> Vec<Self> {
        let entries = self.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        // What is no table has its fault already; the others keep their numbers.
        let section = |(i, entry): (usize, &'a Value)| {
            Some(Section { table: Some(entry.as_table()?), path: format!("{}[{i}]", self.key(name)) })
        };
        entries.iter().enumerate().filter_map(section).collect()
    }
}
