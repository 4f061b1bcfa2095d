//! From a file's text and the environment to one tree of TOML values in which every key is known and has its type.

use super::fault::Faults;
use super::keys::{self, Kind};
use config::{Environment, Source};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Environment variables by name.
pub type Vars = BTreeMap<String, String>;

/// The prefix of environment variables that stand for keys.
const PREFIX: &str = "UNTORN";
/// What separates the parts of a key in them.
const SEPARATOR: &str = "__";

/// Parses the text, lays the environment over it and takes out, with a fault each, whatever is unknown or of a wrong
/// type. The types are checked here and not by the `config` crate, which would quietly make a string of a number.
/// A text that is not TOML is the one fault that hides all others.
pub fn read(text: &str, vars: &Vars, faults: &mut Faults) -> Result<Table, Faults> {
    let mut root = text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Faults::one(&format!("line {line}"), format!("is not TOML: {}", error.message()), "mend the syntax")
    })?;
    check(&mut root, "", "", faults);
    overlay(&mut root, vars, faults);
    Ok(root)
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Keeps what is known and has its type. `pattern` is the section as [`keys`] writes it, `shown` as people do.
fn check(table: &mut Table, pattern: &str, shown: &str, faults: &mut Faults) {
    table.retain(|name, value| {
        let (pattern, shown) = (join(pattern, name), join(shown, name));
        let entries = format!("{pattern}[]");
        if let Some(key) = keys::find(&pattern) {
            return has_kind(value, key.kind, &shown, faults);
        }
        if keys::is_section(&entries) {
            let Value::Array(array) = value else {
                wrong_type(value, "an array of tables", &format!("write [[{shown}]]"), &shown, faults);
                return false;
            };
            for (i, entry) in array.iter_mut().enumerate() {
                let shown = format!("{shown}[{i}]");
                if let Value::Table(entry) = entry {
                    check(entry, &entries, &shown, faults);
                } else {
                    wrong_type(entry, "a table", "write its keys in braces or below double brackets", &shown, faults);
                }
            }
            return true;
        }
        if keys::is_section(&pattern) {
            let Value::Table(section) = value else {
                wrong_type(value, "a section", &format!("write [{shown}] and its keys below"), &shown, faults);
                return false;
            };
            check(section, &pattern, &shown, faults);
            return true;
        }
        let section = pattern.rsplit_once('.').map_or("", |(section, _)| section);
        let known = keys::names_below(section).join(", ");
        faults.push(&shown, "is not a key that untorn knows", format!("remove it, or write one of: {known}"));
        false
    });
}

fn wrong_type(value: &Value, wanted: &str, mend: &str, shown: &str, faults: &mut Faults) {
    faults.push(shown, format!("must be {wanted}, not {} {}", article(value.type_str()), value.type_str()), mend);
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'i']) { "an" } else { "a" }
}

fn has_kind(value: &Value, kind: Kind, shown: &str, faults: &mut Faults) -> bool {
    let fits = match (kind, value) {
        (Kind::Text, Value::String(_)) | (Kind::Integer, Value::Integer(_)) | (Kind::Flag, Value::Boolean(_)) => true,
        (Kind::Names, Value::Array(names)) => names.iter().all(Value::is_str),
        _ => false,
    };
    if !fits {
        let mend = match kind {
            Kind::Text => "put it in quotes",
            Kind::Integer => "write the number without quotes",
            Kind::Flag => "write true or false without quotes",
            Kind::Names => "write [\"one\", \"two\"]",
        };
        wrong_type(value, kind.name(), mend, shown, faults);
    }
    fits
}

/// Lays `UNTORN__SECTION__KEY` over the tree. The number of an array's entry is a part of its own:
/// `UNTORN__SOURCE__TABLETS__0__URL`.
fn overlay(root: &mut Table, vars: &Vars, faults: &mut Faults) {
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .source(Some(vars.clone().into_iter().collect()));
    let found = match environment.collect() {
        Ok(found) => found,
        Err(error) => {
            faults.push("environment", error.to_string(), "mend the variable");
            return;
        }
    };
    // Sorted, numbers by their value, so that entries are added in order.
    let mut found: Vec<(Vec<Part>, String)> = found
        .into_iter()
        .filter_map(|(path, value)| Some((path.split('.').map(Part::new).collect(), value.into_string().ok()?)))
        .collect();
    found.sort();
    for (path, value) in found {
        let (pattern, shown) = (Part::pattern(&path), Part::shown(&path));
        let Some(key) = keys::find(&pattern) else {
            let variable = variable(&path);
            faults.push(&shown, format!("is not a key that untorn knows (from {variable})"), "unset the variable");
            continue;
        };
        match parse(&value, key.kind) {
            Some(value) => insert(root, &path, value, &shown, faults),
            None => {
                let what = format!("must be {} (from {})", key.kind.name(), variable(&path));
                faults.push(&shown, what, "mend the variable");
            }
        }
    }
}

/// One part of an environment variable's path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Part {
    Entry(usize),
    Name(String),
}

impl Part {
    fn new(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Entry)
    }

    fn pattern(path: &[Self]) -> String {
        path.iter().fold(String::new(), |out, part| match part {
            Self::Entry(_) => out + "[]",
            Self::Name(name) => join(&out, name),
        })
    }

    fn shown(path: &[Self]) -> String {
        path.iter().fold(String::new(), |out, part| match part {
            Self::Entry(i) => format!("{out}[{i}]"),
            Self::Name(name) => join(&out, name),
        })
    }
}

fn variable(path: &[Part]) -> String {
    path.iter().fold(PREFIX.to_owned(), |out, part| match part {
        Part::Entry(i) => format!("{out}{SEPARATOR}{i}"),
        Part::Name(name) => format!("{out}{SEPARATOR}{}", name.to_uppercase()),
    })
}

fn parse(text: &str, kind: Kind) -> Option<Value> {
    Some(match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Integer => Value::Integer(text.trim().parse().ok()?),
        Kind::Flag => Value::Boolean(text.trim().to_ascii_lowercase().parse().ok()?),
        Kind::Names => {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            Value::Array(names.map(|name| Value::String(name.to_owned())).collect())
        }
    })
}

/// Puts a value where its path says, making sections and the next entry of an array as needed.
fn insert(root: &mut Table, path: &[Part], value: Value, shown: &str, faults: &mut Faults) {
    let Some((Part::Name(name), rest)) = path.split_first() else { return };
    match rest {
        [] => {
            root.insert(name.clone(), value);
        }
        [Part::Entry(i), rest @ ..] => {
            let array = root.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(array) = array else { return };
            if *i == array.len() {
                array.push(Value::Table(Table::new()));
            }
            match array.get_mut(*i) {
                Some(Value::Table(entry)) => insert(entry, rest, value, shown, faults),
                _ => faults.push(
                    shown,
                    format!("names entry {i}, and there are only {}", array.len()),
                    "number the entries from 0 without gaps",
                ),
            }
        }
        _ => {
            let section = root.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                insert(section, rest, value, shown, faults);
            }
        }
    }
}
