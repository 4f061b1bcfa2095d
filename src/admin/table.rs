//! A table for people: columns as wide as their widest cell.

use std::fmt;

/// Rows of `N` cells below a head.
pub struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    /// A table with this head.
    #[must_use]
    pub fn new(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned)])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.0.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; N] =
            std::array::from_fn(|i| self.0.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
        for row in &self.0 {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
