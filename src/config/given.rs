//! What the file, the environment and the command line say: each value with its place, checked against the schemas.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use toml::{
    Table, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{ConfigError, SettingProblem},
    sections::{self, ENV_PREFIX, Node, SECTIONS, Section, env_name, written},
};
use crate::{
    platform::settings::{Key, PATH, PATHS},
    sources::github,
};

/// Name of the optional file in the data directory.
pub const FILE: &str = "mayfly.toml";
/// Variables with our prefix that are not settings of the service.
const OTHER_ENV: [&str; 7] = [
    "MAYFLY_DATA_DIR",
    "MAYFLY_URL",
    "MAYFLY_TOKEN",
    "MAYFLY_TOKEN_FILE",
    "MAYFLY_CA_FILE",
    github::KEY_VARIABLE,
    github::TOKEN_VARIABLE,
];
/// Paths of programs. A name without a directory is looked up in `PATH` when the program is started.
const PROGRAMS: [&str; 6] = [
    "drivers.qemu.binary",
    "drivers.qemu.qemu_img",
    "drivers.cloud_hypervisor.binary",
    "drivers.cloud_hypervisor.qemu_img",
    "drivers.tart.binary",
    "drivers.macosvm.binary",
];
const COMMAND_LINE: &str = "command line";

#[derive(Debug)]
enum GivenValue {
    /// From the file.
    Typed(Value),
    /// From the environment or the command line: text, parsed by the key's type.
    Untyped(String),
}

/// The given settings, and the problems found in them.
#[derive(Default)]
pub(super) struct GivenSettings {
    /// By path.
    values: BTreeMap<Vec<String>, (&'static Key, GivenValue)>,
    /// Of values and tables, by their paths as written.
    places: BTreeMap<String, String>,
    /// A table without any key counts, too: its name is checked.
    tables: Vec<Vec<String>>,
    problems: Vec<SettingProblem>,
}

impl GivenSettings {
    pub fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let path = path.display().to_string();
        let document = DeTable::parse(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            ConfigError::Syntax { path: path.clone(), line, column, message: error.message().to_owned() }
        })?;
        self.add_table(&[], document.get_ref(), None, &|offset| format!("{path}:{}", position(text, offset).0));
        Ok(())
    }

    /// Takes every `MAYFLY_…` variable that means a setting. An empty one counts as not set.
    pub fn add_env(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX).filter(|_| !OTHER_ENV.contains(&name.as_str())) else {
                continue;
            };
            let place = format!("environment variable {name}");
            let root = rest.split("__").next().unwrap_or_default().to_lowercase();
            if let Some(known) = sections::keys().find(|known| known.env() == name) {
                if !value.is_empty() {
                    let path: Vec<String> = known.path.split('.').map(str::to_owned).collect();
                    self.set(path, known.key, GivenValue::Untyped(value), place);
                }
            } else if sections::named(&root).is_some() {
                self.problem(place, format!("has no meaning: settings below `{root}` stand in {FILE} only"));
            // One underscore where two belong: `MAYFLY_SERVER_LISTEN`.
            } else if rest.contains("__") || sections::keys().any(|known| known.env().replace("__", "_") == name) {
                let near = nearest(&rest.to_lowercase().replace("__", "."), sections::keys().map(|known| known.path));
                self.unknown("key", &name, near.map(|path| env_name(&path)), place);
            }
        }
    }

    /// Keys are written as in TOML.
    pub fn add_overrides(&mut self, overrides: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in overrides {
            match DeTable::parse(&format!("{key} = 0")) {
                Ok(table) => self.add_table(&[], table.get_ref(), Some(&value), &|_| COMMAND_LINE.to_owned()),
                Err(_) => self.unknown("key", &key, None, COMMAND_LINE.to_owned()),
            }
        }
    }

    /// `text`: what counts instead of the values in the table.
    fn add_table(&mut self, at: &[String], table: &DeTable<'_>, text: Option<&str>, place: &dyn Fn(usize) -> String) {
        for (name, value) in table {
            let path: Vec<String> = at.iter().cloned().chain([name.get_ref().to_string()]).collect();
            let place_of_name = place(name.span().start);
            match (sections::find(&path), value.get_ref()) {
                (Some(Node::Key(key)), _) => match (text, Value::deserialize(ValueDeserializer::from(value.clone()))) {
                    (Some(text), _) => self.set(path, key, GivenValue::Untyped(text.to_owned()), place_of_name),
                    (None, Ok(value)) => self.set(path, key, GivenValue::Typed(value), place_of_name),
                    (None, Err(_)) => {
                        self.problem(
                            place_of_name,
                            format!("`{}`: expected {}, found a number beyond 64 bits", written(&path), key.kind),
                        );
                    }
                },
                (Some(Node::Table), DeValue::Table(inner)) => {
                    self.places.entry(written(&path)).or_insert(place_of_name);
                    self.tables.push(path.clone());
                    self.add_table(&path, inner, text, place);
                }
                (Some(Node::Table), _) => {
                    self.problem(place_of_name, format!("`{}`: {}", written(&path), not_a_table(&path)))
                }
                (None, value) => self.unknown_path(&path, matches!(value, DeValue::Table(_)), place_of_name),
            }
        }
    }

    fn set(&mut self, path: Vec<String>, key: &'static Key, value: GivenValue, place: String) {
        self.places.insert(written(&path), place);
        self.values.insert(path, (key, value));
    }

    /// The values as one table, which has the types that the sections expect. What cannot be used is noted and left out.
    pub fn table(&mut self, data_dir: &Path) -> Table {
        let mut root = Table::new();
        for path in &self.tables {
            table_at(&mut root, path);
        }
        for (path, (key, given)) in std::mem::take(&mut self.values) {
            let shown = written(&path);
            match typed(key, &given).and_then(|value| absolute(key, &shown, value, data_dir)) {
                Ok(value) => {
                    let table = &path[..path.len() - 1];
                    table_at(&mut root, table).map(|table| table.insert(key.name.to_owned(), value));
                }
                Err(why) => self.refuse(&shown, why),
            }
        }
        root
    }

    /// Whether this key was given, usable or not.
    pub fn given(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Notes that a setting or a table cannot be used.
    pub fn refuse(&mut self, path: &str, why: impl Into<String>) {
        let place = self.places.get(path).cloned().unwrap_or_else(|| "default".to_owned());
        self.problem(place, format!("`{path}`: {}", why.into()));
    }

    pub fn into_problems(self) -> Vec<SettingProblem> {
        self.problems
    }

    fn problem(&mut self, place: String, message: String) {
        self.problems.push(SettingProblem { place, message });
    }

    fn unknown_path(&mut self, path: &[String], table: bool, place: String) {
        let kind = if table { "section" } else { "key" };
        let near = match sections::named(&path[0]) {
            Some(section) if table && path.len() == 3 => {
                let name = section.named_by().unwrap_or_default();
                let message = format!(
                    "unknown section `{}`; a {name} with dots in it is quoted, as in `[{}]`",
                    written(path),
                    section.example()
                );
                return self.problem(place, message);
            }
            // What may follow the name.
            Some(_) if path.len() > 2 => {
                let same = SECTIONS.iter().filter(|section| section.parts().next() == path.first().map(String::as_str));
                let keys = same.flat_map(|section| {
                    let inner: String = section.parts().skip(2).map(|part| format!("{part}.")).collect();
                    section.schema.keys.iter().map(move |key| format!("{inner}{}", key.name))
                });
                nearest(&path[2..].join("."), keys)
            }
            _ if table => {
                let fixed = |section: &Section| section.named_by().is_none();
                let path_or_root = |s: &Section| if fixed(s) { Some(s.path) } else { s.parts().next() };
                nearest(&path.join("."), SECTIONS.iter().filter_map(path_or_root).map(str::to_owned))
            }
            _ => nearest(&path.join("."), sections::keys().map(|known| known.path)),
        };
        self.unknown(kind, &written(path), near, place);
    }

    /// The value is never repeated: it may be a secret in the wrong place.
    fn unknown(&mut self, kind: &str, written: &str, near: Option<String>, place: String) {
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`mayfly serve --help` says where all of them are listed".to_owned(),
        };
        self.problem(place, format!("unknown {kind} `{written}`; {hint}"));
    }
}

/// Line and column.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn not_a_table(path: &[String]) -> String {
    const PLAIN: &str = "expected a table of settings, found a single value";
    match (sections::named(&path[0]), path.len()) {
        (Some(section), 1) => format!("expected tables such as `[{}]`", section.example()),
        (Some(section), 2) => {
            format!(
                "{PLAIN}; name it by its {}, as in `[{}]`",
                section.named_by().unwrap_or_default(),
                section.example()
            )
        }
        _ => PLAIN.to_owned(),
    }
}

/// The table at this path, made if there is none. `None`: something else is there.
fn table_at<'a>(root: &'a mut Table, path: &[String]) -> Option<&'a mut Table> {
    path.iter().try_fold(root, |table, name| {
        table.entry(name.as_str()).or_insert_with(|| Value::Table(Table::new())).as_table_mut()
    })
}

/// The value, if it has the key's type and is in its range.
fn typed(key: &Key, given: &GivenValue) -> Result<Value, String> {
    let value = match given {
        GivenValue::Typed(value) => Some(value.clone()).filter(key.accepts),
        GivenValue::Untyped(text) => meanings(text).into_iter().find(key.accepts),
    };
    match (value, &key.range) {
        (Some(Value::Integer(number)), Some(range)) if !range.contains(&number) => {
            Err(format!("expected {} to {}, found {number}", range.start(), range.end()))
        }
        (Some(value), _) => Ok(value),
        (None, _) => Err(fault(key, given).unwrap_or_else(|| wrong_type(key, given))),
    }
}

/// What a text may mean: text, a number, `true` or `false`, or a list of texts, separated by commas.
fn meanings(text: &str) -> Vec<Value> {
    let trimmed = text.trim();
    let list = trimmed.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut meanings = vec![text.into(), trimmed.into()];
    meanings.extend(trimmed.parse::<Value>());
    meanings.push(Value::Array(list.map(Value::from).collect()));
    meanings
}

/// What the type itself says of a value that it does not accept.
fn fault(key: &Key, given: &GivenValue) -> Option<String> {
    match given {
        GivenValue::Typed(value) => (key.fault)(value),
        GivenValue::Untyped(text) => meanings(text).iter().find_map(key.fault),
    }
}

fn wrong_type(key: &Key, given: &GivenValue) -> String {
    let example = match key.kind {
        "address and port" => " such as 127.0.0.1:8470",
        "list of texts" => " such as [\"en0\"]",
        _ => "",
    };
    let found = match given {
        GivenValue::Untyped(text) => format!("{text:?}"),
        GivenValue::Typed(Value::String(text)) => format!("the text {text:?}"),
        GivenValue::Typed(Value::Integer(number)) => format!("the number {number}"),
        GivenValue::Typed(Value::Boolean(yes)) => format!("`{yes}`"),
        GivenValue::Typed(Value::Float(_)) => "a number with a fraction".to_owned(),
        GivenValue::Typed(Value::Datetime(_)) => "a date".to_owned(),
        GivenValue::Typed(Value::Array(values)) if values.iter().all(Value::is_str) => "a list".to_owned(),
        GivenValue::Typed(Value::Array(_)) => "a list that holds more than texts".to_owned(),
        GivenValue::Typed(Value::Table(_)) => "a table".to_owned(),
    };
    format!("expected {}{example}, found {found}", key.kind)
}

/// Paths are relative to the data directory.
fn absolute(key: &Key, path: &str, value: Value, data_dir: &Path) -> Result<Value, String> {
    let resolve = |given: &str| {
        let file = PathBuf::from(given);
        if given.is_empty() {
            Err(format!("expected {PATH}, found the text \"\""))
        } else if file.starts_with("~") {
            Err("`~` is not expanded here; write the whole path".to_owned())
        } else if PROGRAMS.contains(&path) && file.components().count() == 1 {
            Ok(Value::from(given))
        } else {
            let absolute = data_dir.join(file).into_os_string().into_string();
            absolute.map(Value::from).map_err(|_| "the data directory is not UTF-8; write the whole path".to_owned())
        }
    };
    match (key.kind, value) {
        (PATH, Value::String(file)) => resolve(&file),
        (PATHS, Value::Array(files)) => {
            files.iter().filter_map(Value::as_str).map(resolve).collect::<Result<_, _>>().map(Value::Array)
        }
        (_, value) => Ok(value),
    }
}

/// The known name that was most likely meant.
fn nearest(given: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let near = strsim::normalized_damerau_levenshtein;
    // The right key in the wrong section counts a little less than a typing error.
    let score = |path: &str| near(given, path).max(near(&last(given), &last(path)) * 0.9);
    let scored = known.map(|path| (score(&path), path)).filter(|(score, _)| *score >= 0.6);
    // Of equals, the one that is documented first.
    scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, path)| path)
}
