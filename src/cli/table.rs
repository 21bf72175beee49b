//! Tables: columns that fit the terminal, and cells with colours.

use super::{
    output::{Colour, paint},
    text::{plain, shorten},
};

/// Between two columns.
const GAP: &str = "  ";
/// The column that gives way keeps this many characters.
const LEAST: usize = 8;

/// One column. If a table is wider than the terminal, first the columns with a limit are cut, then the one that gives way.
#[derive(Clone, Copy)]
pub(super) struct Column {
    head: &'static str,
    narrow: Option<usize>,
    /// Its beginning is enough to recognise it, as with ids: cut without a mark.
    prefix: bool,
    gives_way: bool,
    wide: bool,
}

impl Column {
    pub const fn new(head: &'static str) -> Self {
        Self { head, narrow: None, prefix: false, gives_way: false, wide: false }
    }

    /// At most this many characters in a table that does not fit.
    pub const fn at_most(self, narrow: usize) -> Self {
        Self { narrow: Some(narrow), ..self }
    }

    pub const fn prefix(self, narrow: usize) -> Self {
        Self { narrow: Some(narrow), prefix: true, ..self }
    }

    pub const fn gives_way(self) -> Self {
        Self { gives_way: true, ..self }
    }

    /// Only in a table with more columns.
    pub const fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    pub const fn is_wide(&self) -> bool {
        self.wide
    }

    fn cut(&self, text: &str, to: usize) -> String {
        if self.prefix { text.chars().take(to).collect() } else { shorten(text, to) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub fn painted(text: impl Into<String>, colour: Option<Colour>) -> Self {
        Self { text: text.into(), colour }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), colour: None }
    }
}

fn len(text: &str) -> usize {
    text.chars().count()
}

/// The lines of a table, the first of them with the heads. `width`: what its lines have to fit in.
pub(super) fn lines(columns: &[Column], mut rows: Vec<Vec<Cell>>, width: Option<usize>) -> Vec<String> {
    for cell in rows.iter_mut().flatten() {
        cell.text = plain(&cell.text).replace(['\n', '\t'], " ");
    }
    let mut widths = widths(columns, &rows);
    if let Some(width) = width
        && total(&widths) > width
    {
        let limits: Vec<Option<usize>> = columns.iter().map(|column| column.narrow).collect();
        cut(columns, &mut rows, &limits);
        widths = self::widths(columns, &rows);
        let excess = total(&widths).saturating_sub(width);
        if let Some(giver) = columns.iter().position(|column| column.gives_way) {
            let least = len(columns[giver].head).max(LEAST);
            widths[giver] = widths[giver].saturating_sub(excess).max(least.min(widths[giver]));
            let limits: Vec<Option<usize>> = (0..columns.len()).map(|n| (n == giver).then(|| widths[n])).collect();
            cut(columns, &mut rows, &limits);
        }
    }
    let head: Vec<Cell> = columns.iter().map(|column| column.head.into()).collect();
    std::iter::once(&head).chain(&rows).map(|row| line(row, &widths)).collect()
}

fn widths(columns: &[Column], rows: &[Vec<Cell>]) -> Vec<usize> {
    let widest = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| len(&cell.text)).max().unwrap_or(0);
    columns.iter().enumerate().map(|(n, column)| len(column.head).max(widest(n))).collect()
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

fn cut(columns: &[Column], rows: &mut [Vec<Cell>], limits: &[Option<usize>]) {
    for row in rows {
        for ((cell, column), limit) in row.iter_mut().zip(columns).zip(limits) {
            if let Some(limit) = limit {
                cell.text = column.cut(&cell.text, *limit);
            }
        }
    }
}

/// Padded before it is painted: a terminal does not count colours.
fn line(row: &[Cell], widths: &[usize]) -> String {
    let filled = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
    let mut line = String::new();
    for (n, (cell, width)) in row.iter().zip(widths).take(filled).enumerate() {
        if n > 0 {
            line.push_str(GAP);
        }
        line.push_str(&cell.colour.map_or_else(|| cell.text.clone(), |colour| paint(&cell.text, colour)));
        if n + 1 < filled {
            line.push_str(&" ".repeat(width.saturating_sub(len(&cell.text))));
        }
    }
    line
}

/// The same as text.
pub(super) fn table(columns: &[Column], rows: Vec<Vec<Cell>>, width: Option<usize>) -> String {
    lines(columns, rows, width).iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::new("NAME").gives_way(), Column::new("ID").prefix(4), Column::new("STATE").at_most(6)];

    fn rows(name: &str) -> Vec<Vec<Cell>> {
        vec![
            vec![name.into(), "0123456789".into(), Cell::painted("configuring", Some(Colour::Green))],
            vec!["b\u{1b}\n".into(), "x".into(), "".into()],
        ]
    }

    #[test]
    fn a_table_fits_its_width() {
        let cut = table(&COLUMNS, rows(&"a".repeat(90)), Some(40));
        assert!(cut.lines().all(|l| l.chars().count() <= 40), "{cut}");
        assert!(cut.contains("a…  0123  confi…\n"), "{cut}");
        let whole = table(&COLUMNS, rows(&"a".repeat(90)), None);
        assert!(whole.contains(&"a".repeat(90)) && whole.contains("0123456789  configuring\n"), "{whole}");
        // What fits is not cut, and nothing ends with blanks.
        let short = table(&COLUMNS, rows("a"), Some(40));
        assert_eq!(short, "NAME  ID          STATE\na     0123456789  configuring\nb\u{fffd}    x\n");
    }
}
