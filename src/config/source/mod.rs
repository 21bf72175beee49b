//! Where settings come from: the file, the environment and the command line, each value with the place where it stands.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError, SettingProblem,
    keys::{self, Named, NestedTable},
};
use crate::{domain::Scope, sources::github};

pub(super) mod named;

pub(super) use named::path as named_path;

const ENV_PREFIX: &str = "MAYFLY_";
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

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// What it takes, in words: "expected <this>".
    const KIND: &str;
    /// From text: a TOML string, a variable, an option.
    fn from_text(text: &str) -> Option<Self>;
    fn from_integer(_: i64) -> Option<Self> {
        None
    }
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_list(_: &[String]) -> Option<Self> {
        None
    }
    /// Whether text in the file will do, or only in the environment, where everything is text.
    const TEXT_IN_FILE: bool = true;
    fn show(&self) -> String;
}

macro_rules! whole_number {
    ($($type:ty)+) => { $(
        impl Setting for $type {
            const KIND: &str = "whole number";
            const TEXT_IN_FILE: bool = false;
            fn from_text(text: &str) -> Option<Self> {
                text.trim().parse().ok()
            }
            fn from_integer(n: i64) -> Option<Self> {
                n.try_into().ok()
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+ };
}
whole_number! { u16 u32 u64 }

impl Setting for bool {
    const KIND: &str = "`true` or `false`";
    const TEXT_IN_FILE: bool = false;
    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
    fn from_bool(b: bool) -> Option<Self> {
        Some(b)
    }
    fn show(&self) -> String {
        format!("`{self}`")
    }
}

impl Setting for String {
    const KIND: &str = "text";
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        format!("`{self}`")
    }
}

impl Setting for PathBuf {
    const KIND: &str = "path";
    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
    fn show(&self) -> String {
        format!("`{}`", self.display())
    }
}

impl Setting for SocketAddr {
    const KIND: &str = "address and port";
    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
    fn show(&self) -> String {
        format!("`{self}`")
    }
}

impl Setting for IpAddr {
    const KIND: &str = "address";
    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
    fn show(&self) -> String {
        format!("`{self}`")
    }
}

/// In the environment and on the command line: separated by commas.
impl Setting for Vec<String> {
    const KIND: &str = "list of texts";
    const TEXT_IN_FILE: bool = false;
    fn from_text(text: &str) -> Option<Self> {
        Some(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect())
    }
    fn from_list(texts: &[String]) -> Option<Self> {
        Some(texts.to_vec())
    }
    fn show(&self) -> String {
        if self.is_empty() { "none".to_owned() } else { format!("`{}`", self.join("`, `")) }
    }
}

impl Setting for Vec<PathBuf> {
    const KIND: &str = "list of paths";
    const TEXT_IN_FILE: bool = false;
    fn from_text(text: &str) -> Option<Self> {
        Vec::<String>::from_text(text).map(|texts| texts.into_iter().map(PathBuf::from).collect())
    }
    fn from_list(texts: &[String]) -> Option<Self> {
        Some(texts.iter().map(PathBuf::from).collect())
    }
    fn show(&self) -> String {
        self.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().show()
    }
}

impl Setting for Scope {
    const KIND: &str = "`owner/name`, an organisation or `enterprises/slug`";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        format!("`{}`", self.slug())
    }
}

impl<T: Setting> Setting for Option<T> {
    const KIND: &str = T::KIND;
    const TEXT_IN_FILE: bool = T::TEXT_IN_FILE;
    fn from_text(text: &str) -> Option<Self> {
        T::from_text(text).map(Some)
    }
    fn from_integer(n: i64) -> Option<Self> {
        T::from_integer(n).map(Some)
    }
    fn from_bool(b: bool) -> Option<Self> {
        T::from_bool(b).map(Some)
    }
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::show)
    }
}

#[derive(Debug)]
enum RawValue {
    /// A variable or an option: text, whatever it means.
    Untyped(String),
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<String>),
    /// Something that no setting takes, in words.
    Other(&'static str),
}

impl RawValue {
    fn show(&self) -> String {
        match self {
            RawValue::Untyped(text) => format!("{text:?}"),
            RawValue::Text(text) => format!("the text {text:?}"),
            RawValue::Integer(n) => format!("the number {n}"),
            RawValue::Bool(b) => format!("`{b}`"),
            RawValue::List(_) => "a list".to_owned(),
            RawValue::Other(what) => (*what).to_owned(),
        }
    }
}

/// Everything that was given, by key; and everything that is wrong with it.
#[derive(Default)]
pub(super) struct GivenSettings {
    values: BTreeMap<String, RawValue>,
    places: BTreeMap<String, String>,
    problems: Vec<SettingProblem>,
}

pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

impl GivenSettings {
    /// A setting as given, or `None` for its default. What is given and not usable is noted.
    pub fn take<T: Setting>(&mut self, key: &str) -> Option<T> {
        let raw = self.values.remove(key)?;
        let value = match &raw {
            RawValue::Untyped(text) => T::from_text(text),
            RawValue::Text(text) if T::TEXT_IN_FILE => T::from_text(text),
            RawValue::Text(_) | RawValue::Other(_) => None,
            RawValue::Integer(n) => T::from_integer(*n),
            RawValue::Bool(b) => T::from_bool(*b),
            RawValue::List(texts) => T::from_list(texts),
        };
        if value.is_none() {
            let example = match T::KIND {
                "address and port" => " such as 127.0.0.1:8470",
                "list of texts" => " such as [\"en0\"]",
                _ => "",
            };
            self.refuse(key, format!("expected {}{example}, found {}", T::KIND, raw.show()));
        }
        value
    }

    /// Whether anybody said something of it, usable or not.
    pub fn given(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Notes that a setting cannot be used.
    pub fn refuse(&mut self, key: &str, why: impl Into<String>) {
        let place = self.places.get(key).cloned().unwrap_or_else(|| "default".to_owned());
        self.problems.push(SettingProblem { place, message: format!("`{key}`: {}", why.into()) });
    }

    /// Notes that a named table cannot be used.
    pub fn refuse_table(&mut self, path: &str, why: impl Into<String>) {
        let place = self.places.get(&format!("{path}.")).cloned().unwrap_or_else(|| "command line".to_owned());
        self.problems.push(SettingProblem { place, message: format!("`{path}`: {}", why.into()) });
    }

    pub fn in_range<N: Into<u64> + Copy>(&mut self, key: &str, value: N, least: u64, most: u64) {
        let value = value.into();
        if value < least || value > most {
            self.refuse(key, format!("expected {least} to {most}, found {value}"));
        }
    }

    pub fn into_problems(self) -> Vec<SettingProblem> {
        self.problems
    }

    fn set(&mut self, key: &str, raw: RawValue, place: String) {
        self.values.insert(key.to_owned(), raw);
        self.places.insert(key.to_owned(), place);
    }

    pub fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let shown = path.display().to_string();
        let position = |offset: usize| {
            let before = text.get(..offset).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |n| n + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        };
        let document = DeTable::parse(text).map_err(|error| {
            let (line, column) = position(error.span().map_or(0, |s| s.start));
            ConfigError::Syntax { path: shown.clone(), line, column, message: error.message().to_owned() }
        })?;
        let place = |offset: usize| format!("{shown}:{}", position(offset).0);
        self.walk("", document.get_ref(), &place);
        Ok(())
    }

    /// The names that tables of this kind were given, each with the path that its settings have.
    pub fn names(&self, root: &str) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for key in self.places.keys() {
            if let Some((named, name, _)) = named::split(key)
                && named.root == root
                && names.last().is_none_or(|(last, _)| *last != name)
            {
                let path = named::path(root, &name);
                names.push((name, path));
            }
        }
        names.dedup();
        names
    }

    fn walk_named(&mut self, named: &'static Named, value: &DeValue<'_>, place: &dyn Fn(usize) -> String, at: String) {
        let example = || named::path(named.root, named.example);
        let DeValue::Table(tables) = value else {
            return self.problems.push(SettingProblem {
                place: at,
                message: format!("`{}`: expected tables such as `[{}]`", named.root, example()),
            });
        };
        for (name, value) in tables.iter() {
            let path = named::path(named.root, name.get_ref());
            let DeValue::Table(settings) = value.get_ref() else {
                let message = format!(
                    "`{path}`: expected a table of settings, found a single value; name it by its {}, as in `[{}]`",
                    named.name,
                    example()
                );
                self.problems.push(SettingProblem { place: place(name.span().start), message });
                continue;
            };
            // Without settings it would not be seen at all, and its name never be looked at.
            self.places.insert(format!("{path}."), place(name.span().start));
            for (field, value) in settings.iter() {
                let key = format!("{path}.{}", field.get_ref());
                if let Some(inner) = named.inner.as_ref().filter(|inner| inner.name == field.get_ref()) {
                    self.walk_inner(named, inner, value, place, &key);
                    continue;
                }
                let place = place(field.span().start);
                if named::split(&key).is_some_and(|(_, _, field)| !field.is_empty()) {
                    self.set(&key, raw(value.get_ref()), place);
                } else if matches!(value.get_ref(), DeValue::Table(_)) {
                    let message = format!(
                        "unknown section `{key}`; a {} with dots in it is quoted, as in `[{}]`",
                        named.name,
                        example()
                    );
                    self.problems.push(SettingProblem { place, message });
                } else {
                    let hint = match named::nearest(named, field.get_ref()) {
                        Some(near) => format!("; did you mean `{near}`?"),
                        None => String::new(),
                    };
                    self.problems.push(SettingProblem { place, message: format!("unknown key `{key}`{hint}") });
                }
            }
        }
    }

    fn walk_inner(
        &mut self,
        named: &'static Named,
        inner: &'static NestedTable,
        value: &Spanned<DeValue<'_>>,
        place: &dyn Fn(usize) -> String,
        path: &str,
    ) {
        let DeValue::Table(settings) = value.get_ref() else {
            let message = format!("`{path}`: expected a table of settings, found a single value");
            return self.problems.push(SettingProblem { place: place(value.span().start), message });
        };
        for (field, value) in settings.iter() {
            let key = format!("{path}.{}", field.get_ref());
            let place = place(field.span().start);
            if named::split(&key).is_some() {
                self.set(&key, raw(value.get_ref()), place);
                continue;
            }
            let hint = match named::nearest(named, &format!("{}.{}", inner.name, field.get_ref())) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            self.problems.push(SettingProblem { place, message: format!("unknown key `{key}`{hint}") });
        }
    }

    fn walk(&mut self, prefix: &str, table: &DeTable<'_>, place: &dyn Fn(usize) -> String) {
        for (name, value) in table.iter() {
            let name: &Spanned<_> = name;
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let place_of_key = place(name.span().start);
            if let Some(named) = named::of_root(&key) {
                self.walk_named(named, value.get_ref(), place, place_of_key);
                continue;
            }
            let section = is_section(&key);
            match value.get_ref() {
                DeValue::Table(inner) if section => self.walk(&key, inner, place),
                DeValue::Table(_) if !is_key(&key) => self.unknown(&key, &key, true, place_of_key),
                _ if section => self.problems.push(SettingProblem {
                    place: place_of_key,
                    message: format!("`{key}`: expected a table of settings, found a single value"),
                }),
                _ if !is_key(&key) => self.unknown(&key, &key, false, place_of_key),
                value => self.set(&key, raw(value), place_of_key),
            }
        }
    }

    /// Takes every `MAYFLY_…` variable that means a setting. An empty one counts as not set.
    pub fn add_env(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            if OTHER_ENV.contains(&name.as_str()) {
                continue;
            }
            let key = rest.to_lowercase().replace("__", ".");
            let place = format!("environment variable {name}");
            if is_key(&key) && env_name(&key) == name {
                if !value.is_empty() {
                    self.set(&key, RawValue::Untyped(value), place);
                }
            } else if let Some(named) = rest.split("__").next().and_then(|root| named::of_root(&root.to_lowercase())) {
                let message = format!("has no meaning: settings below `{}` stand in {} only", named.root, super::FILE);
                self.problems.push(SettingProblem { place, message });
            } else if rest.contains("__") || looks_like_a_setting(&key) {
                self.unknown(&key, &name, false, place);
            }
        }
    }

    pub fn add_overrides(&mut self, overrides: Vec<(String, String)>) {
        for (key, value) in overrides {
            let place = "command line".to_owned();
            let named = named::split(&key).is_some_and(|(_, _, field)| !field.is_empty());
            if is_key(&key) || named {
                self.set(&key, RawValue::Untyped(value), place);
            } else {
                self.unknown(&key, &key, false, place);
            }
        }
    }

    /// `shown` is the key as it was written. Values are never repeated: it may be a secret that was put in the wrong place.
    fn unknown(&mut self, key: &str, shown: &str, table: bool, place: String) {
        let kind = if table { "section" } else { "key" };
        let as_written = |path: &str| if shown == key { path.to_owned() } else { env_name(path) };
        let hint = match nearest(key, table) {
            Some(path) => format!("; did you mean `{}`?", as_written(path)),
            None => "; `mayfly serve --help` says where all of them are listed".to_owned(),
        };
        self.problems.push(SettingProblem { place, message: format!("unknown {kind} `{shown}`{hint}") });
    }
}

fn raw(value: &DeValue<'_>) -> RawValue {
    match value {
        DeValue::String(text) => RawValue::Text(text.to_string()),
        DeValue::Boolean(b) => RawValue::Bool(*b),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => RawValue::Integer(n),
            Err(_) => RawValue::Other("a number beyond 64 bits"),
        },
        DeValue::Float(_) => RawValue::Other("a number with a fraction"),
        DeValue::Datetime(_) => RawValue::Other("a date"),
        DeValue::Array(values) => {
            let text = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            };
            values
                .iter()
                .map(text)
                .collect::<Option<_>>()
                .map_or(RawValue::Other("a list that holds more than texts"), RawValue::List)
        }
        DeValue::Table(_) => RawValue::Other("a table"),
    }
}

fn is_key(key: &str) -> bool {
    keys::all().any(|k| k.path == key)
}

/// A table that settings stand in, or that sections stand in (`drivers`).
fn is_section(path: &str) -> bool {
    keys::SECTIONS.iter().any(|s| s.path == path || s.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// `server_listen` for `server.listen`: one underscore where two belong.
fn looks_like_a_setting(name: &str) -> bool {
    keys::all().any(|k| k.path.replace('.', "_") == name.replace('.', "_"))
}

/// The known key (or section) that was most likely meant.
fn nearest(given: &str, table: bool) -> Option<&'static str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let near = strsim::normalized_damerau_levenshtein;
    let known: Vec<&'static str> = if table {
        keys::SECTIONS.iter().map(|s| s.path).chain(keys::NAMED.iter().map(|n| n.root)).collect()
    } else {
        keys::all().map(|k| k.path).collect()
    };
    known
        .into_iter()
        // Of equals the last one wins: let it be the one that is documented first.
        .rev()
        // The right key in the wrong section counts a little less than a slip of the finger.
        .map(|path| (near(given, path).max(near(&last(given), &last(path)) * 0.9), path))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, path)| path)
}
