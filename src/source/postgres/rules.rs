//! Which published tables are replicated, and under which names.

use crate::source::{Catalog, SourceError};
use crate::wal::{Column, TableSchema};
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;

/// `schema.table`, where a `*` in either part stands for anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    schema: Part,
    table: Part,
}

/// A name, or what stands before and after its `*`.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Exact(String),
    Around(String, String),
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('*') {
            _ if text.is_empty() => Err("has an empty part".into()),
            None => Ok(Self::Exact(text.to_owned())),
            Some((_, after)) if after.contains('*') => Err("has two `*` in one part".into()),
            Some((before, after)) => Ok(Self::Around(before.to_owned(), after.to_owned())),
        }
    }

    /// What the `*` stands for, where the name fits.
    fn fits<'a>(&self, name: &'a str) -> Option<&'a str> {
        match self {
            Self::Exact(exact) => (exact == name).then_some(""),
            Self::Around(before, after) => name.strip_prefix(before.as_str())?.strip_suffix(after.as_str()),
        }
    }

    /// The name with this in the place of the `*`.
    fn with(&self, star: &str) -> String {
        match self {
            Self::Exact(exact) => exact.clone(),
            Self::Around(before, after) => format!("{before}{star}{after}"),
        }
    }

    fn has_star(&self) -> bool {
        matches!(self, Self::Around(..))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with("*"))
    }
}

impl Pattern {
    /// From `schema.table`. Names stand as they are, unquoted; a schema whose name holds a dot cannot be named.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (schema, table) = text.split_once('.').ok_or("is not of the form schema.table")?;
        Ok(Self { schema: Part::parse(schema)?, table: Part::parse(table)? })
    }

    fn fits(&self, schema: &str, table: &str) -> bool {
        self.schema.fits(schema).is_some() && self.table.fits(table).is_some()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// Another name for tables: `shop.* -> public.*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rename {
    from: Pattern,
    to: Pattern,
}

impl Rename {
    /// From `schema.table -> schema.table`; a `*` on the right stands for what the same part's `*` on the left does.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once("->").ok_or("is not of the form schema.table -> schema.table")?;
        let (from, to) = (Pattern::parse(from.trim())?, Pattern::parse(to.trim())?);
        let parts = [(&from.schema, &to.schema), (&from.table, &to.table)];
        if parts.iter().any(|(from, to)| to.has_star() && !from.has_star()) {
            return Err("has a `*` on the right where there is none on the left".into());
        }
        Ok(Self { from, to })
    }

    fn apply(&self, schema: &str, table: &str) -> Option<(String, String)> {
        let (schema, table) = (self.from.schema.fits(schema)?, self.from.table.fits(table)?);
        Some((self.to.schema.with(schema), self.to.table.with(table)))
    }
}

impl fmt::Display for Rename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

/// The rules of one server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableRules {
    /// Only tables that one of these fits; all of them where it is empty.
    pub include: Vec<Pattern>,
    /// Not these, whatever is included.
    pub exclude: Vec<Pattern>,
    /// The first that fits gives the table its name at the replica.
    pub rename: Vec<Rename>,
}

impl TableRules {
    /// The name of a table at the replica, `schema.table`; `None` where it is not replicated.
    #[must_use]
    pub fn name_of(&self, schema: &str, table: &str) -> Option<String> {
        let fits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(schema, table));
        if (!self.include.is_empty() && !fits(&self.include)) || fits(&self.exclude) {
            return None;
        }
        let renamed = self.rename.iter().find_map(|rename| rename.apply(schema, table));
        let (schema, table) = renamed.unwrap_or_else(|| (schema.to_owned(), table.to_owned()));
        Some(format!("{schema}.{table}"))
    }

    /// The rules that fit none of these tables: most likely misspelt. Each with the key that it stands under.
    #[must_use]
    pub fn unused(&self, tables: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let used = |pattern: &Pattern| tables.iter().any(|(schema, table)| pattern.fits(schema, table));
        let of = |key, patterns: &[Pattern]| -> Vec<(&'static str, String)> {
            patterns.iter().filter(|pattern| !used(pattern)).map(|pattern| (key, pattern.to_string())).collect()
        };
        let renames = self.rename.iter().filter(|rename| !used(&rename.from));
        let renames = renames.map(|rename| ("rename", rename.to_string()));
        of("include", &self.include).into_iter().chain(of("exclude", &self.exclude)).chain(renames).collect()
    }
}

/// The log's catalog, which knows tables by their names at the replica.
pub struct Renaming {
    /// The catalog.
    pub catalog: Arc<dyn Catalog>,
    /// The rules.
    pub rules: Arc<TableRules>,
}

#[async_trait]
impl Catalog for Renaming {
    async fn table(&self, name: &str, columns: Vec<Column>, relation: Option<u32>) -> Result<TableSchema, SourceError> {
        let (schema, table) = name.split_once('.').unwrap_or(("", name));
        let renamed = self.rules.name_of(schema, table);
        self.catalog.table(renamed.as_deref().unwrap_or(name), columns, relation).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(include: &[&str], exclude: &[&str], rename: &[&str]) -> TableRules {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let rename = rename.iter().map(|text| Rename::parse(text).unwrap()).collect();
        TableRules { include: patterns(include), exclude: patterns(exclude), rename }
    }

    #[test]
    fn without_rules_a_table_keeps_its_name() {
        assert_eq!(TableRules::default().name_of("Odd", "Tische").as_deref(), Some("Odd.Tische"));
    }

    #[test]
    fn what_is_excluded_is_not_included() {
        let rules = rules(&["public.*", "shop.orders"], &["*.tmp_*", "public.secret"], &[]);
        let replicated = |schema, table| rules.name_of(schema, table).is_some();
        assert!(replicated("public", "a") && replicated("shop", "orders"));
        for (schema, table) in [("shop", "other"), ("public", "tmp_1"), ("public", "secret"), ("publi", "a")] {
            assert!(!replicated(schema, table), "{schema}.{table}");
        }
        let tables = [("public", "a"), ("public", "secret")];
        assert_eq!(rules.unused(&tables), [("include", "shop.orders".into()), ("exclude", "*.tmp_*".into())]);
    }

    #[test]
    fn the_first_rename_that_fits_counts() {
        let rules = rules(&[], &[], &["shop.kunden -> public.customers", "shop.* -> public.*", "t_*.x -> t.x_a"]);
        let name = |schema, table| rules.name_of(schema, table).unwrap();
        assert_eq!(name("shop", "kunden"), "public.customers");
        assert_eq!(name("shop", "waren"), "public.waren");
        assert_eq!(name("t_7", "x"), "t.x_a");
        assert_eq!(name("public", "kunden"), "public.kunden");
        let unused = rules.unused(&[("shop", "kunden")]);
        assert_eq!(unused, [("rename", "t_*.x -> t.x_a".into())]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in ["accounts", "public.", ".a", "public.a*b*"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        for bad in ["public.a", "public.a -> b", "public.a -> shop.*", "public.a -> *.a"] {
            assert!(Rename::parse(bad).is_err(), "{bad}");
        }
    }
}
