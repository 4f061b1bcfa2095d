//! The servers of a replica, and which of them has which table.

use crate::postgres::Target;
use crate::tablet::TabletError;

/// One server, and the tables that it is to have.
#[derive(Clone)]
pub struct Server {
    /// Where it is.
    pub target: Target,
    /// `schema.table`, or `schema.*`. Empty: every table that no other server names.
    pub tables: Vec<String>,
}

/// The servers; at least one. Each table is on one of them.
#[derive(Clone)]
pub struct Servers(Vec<Server>);

impl Servers {
    /// Servers in the configuration's order.
    #[must_use]
    pub fn new(servers: Vec<Server>) -> Self {
        Self(servers)
    }

    /// All of them.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.0.iter().map(|server| &server.target)
    }

    /// All of them, for people.
    #[must_use]
    pub fn label(&self) -> String {
        let labels: Vec<String> = self.targets().map(Target::label).collect();
        labels.join(" and ")
    }

    /// The number of the server that has a table.
    ///
    /// # Errors
    /// None is to have it.
    pub fn place(&self, table: &str) -> Result<usize, TabletError> {
        let lists: Vec<&[String]> = self.0.iter().map(|server| &server.tables[..]).collect();
        place(&lists, table).ok_or_else(|| {
            TabletError::Refused(format!(
                "table {table} is placed on no server: name it in one replica.tablets[].tables, or leave that key out of \
                 one server, which then has every other table"
            ))
        })
    }

    /// The server that has a table.
    ///
    /// # Errors
    /// None is to have it.
    pub fn target(&self, table: &str) -> Result<&Target, TabletError> {
        let place = self.place(table)?;
        self.targets().nth(place).ok_or_else(|| TabletError::Refused("there are no servers".into()))
    }
}

/// Which of these lists has a table: one that names it, else one that names its schema, else the one that is empty.
#[must_use]
pub fn place(lists: &[&[String]], table: &str) -> Option<usize> {
    let schema = table.split_once('.').map(|(schema, _)| format!("{schema}.*"));
    let named = |name: &str| lists.iter().position(|list| list.iter().any(|listed| listed == name));
    named(table).or_else(|| named(&schema?)).or_else(|| lists.iter().position(|list| list.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_where_it_is_named_then_where_its_schema_is_then_with_the_rest() {
        let (a, b, c) = (["public.a".to_owned()], ["public.*".to_owned(), "sales.b".to_owned()], []);
        let lists: [&[String]; 3] = [&a, &b, &c];
        let places = ["public.a", "public.b", "sales.b", "sales.c"].map(|table| place(&lists, table));
        assert_eq!(places, [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(place(&lists[..2], "sales.c"), None);
    }
}
