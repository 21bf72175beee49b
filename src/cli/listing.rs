//! Listings: what is printed of the things that a command lists. Every command that lists prints through this.

use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    client::ApiClient,
    failure::CommandFailure,
    output,
    table::{self, Cell, Column},
};

#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct ListFormat {
    /// Print ids only; the same as -o id
    #[arg(long, short, conflicts_with = "output")]
    quiet: bool,
    /// What is printed of each: more columns, its name or its id
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    output: Option<ListOutput>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListOutput {
    /// A table with more columns, and nothing cut
    Wide,
    /// Names only, one per line
    Name,
    /// Ids only, one per line: what other commands take to name it for certain
    Id,
}

impl ListFormat {
    pub fn chosen(&self) -> Option<ListOutput> {
        if self.quiet { Some(ListOutput::Id) } else { self.output }
    }
}

/// What a listing shows of one thing.
pub(super) trait Listable: DeserializeOwned {
    const COLUMNS: &'static [Column];

    fn name(&self) -> String;

    /// What names it for certain; its name, if it has nothing else.
    fn id(&self) -> String {
        self.name()
    }

    /// One for each column.
    fn cells(&self) -> Vec<Cell>;
}

/// Prints what the API listed. `empty` is said if that is nothing.
pub(super) fn print<T: Listable>(
    client: &ApiClient,
    items: &[Value],
    format: ListFormat,
    json: bool,
    empty: &str,
) -> Result<(), CommandFailure> {
    if json {
        return output::json(&json!({ "items": items }));
    }
    let things: Vec<T> = items.iter().map(|item| client.view(item)).collect::<Result<_, _>>()?;
    match format.chosen() {
        Some(ListOutput::Name) => things.iter().try_for_each(|thing| output::line(&super::text::plain(&thing.name()))),
        Some(ListOutput::Id) => things.iter().try_for_each(|thing| output::line(&super::text::plain(&thing.id()))),
        _ if things.is_empty() => {
            output::note(empty);
            Ok(())
        }
        // As wide as it is: a terminal folds the lines.
        Some(ListOutput::Wide) => output::bytes(text(&lines(&things, true, None)).as_bytes()),
        None => output::bytes(text(&lines(&things, false, output::width())).as_bytes()),
    }
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The lines of a table, the first of them with the heads.
pub(super) fn lines<T: Listable>(things: &[T], wide: bool, width: Option<usize>) -> Vec<String> {
    let shown: Vec<bool> = T::COLUMNS.iter().map(|column| wide || !column.is_wide()).collect();
    let columns: Vec<Column> = T::COLUMNS.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(c, _)| *c).collect();
    let row = |thing: &T| thing.cells().into_iter().zip(&shown).filter(|(_, shown)| **shown).map(|(c, _)| c).collect();
    table::lines(&columns, things.iter().map(row).collect(), width)
}
