//! How a part declares its section of the configuration: the type, default, range and description of each key, in one place.
//!
//! `section!` makes an ordinary serde struct and its `SCHEMA`. From the schemas, `config` rejects unknown keys and writes
//! `docs/configuration.md`. The part itself knows neither where its section is nor where values come from.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::Value;

/// What is known of a section besides its values.
#[derive(Debug)]
pub struct Schema {
    pub description: &'static str,
    pub keys: &'static [Key],
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// What it takes, in words: "expected <this>".
    pub kind: &'static str,
    /// As the documentation shows it.
    pub default: fn() -> String,
    /// Of numbers that have one.
    pub range: Option<RangeInclusive<i64>>,
    pub description: &'static str,
    /// Whether a value has its type.
    pub accepts: fn(&Value) -> bool,
    /// What is wrong with a value that is not accepted, if its type has more to say than `kind`.
    pub fault: fn(&Value) -> Option<String>,
}

/// A type that a setting can have.
pub trait SettingType: Serialize + DeserializeOwned {
    /// What it takes, in words.
    const KIND: &'static str;

    /// What is wrong with a value that has not this type, if that is more than `expected <kind>`.
    fn fault(_value: &Value) -> Option<String> {
        None
    }
}

/// The kind of settings that are paths. `config` makes them absolute.
pub const PATH: &str = "path";
pub const PATHS: &str = "list of paths";

macro_rules! setting_types {
    ($($type:ty: $kind:expr;)+) => { $( impl SettingType for $type { const KIND: &'static str = $kind; } )+ };
}

setting_types! {
    u16: "whole number";
    u32: "whole number";
    u64: "whole number";
    bool: "`true` or `false`";
    String: "text";
    Vec<String>: "list of texts";
    PathBuf: PATH;
    Vec<PathBuf>: PATHS;
    SocketAddr: "address and port";
    IpAddr: "address";
}

impl<T: SettingType> SettingType for Option<T> {
    const KIND: &'static str = T::KIND;

    fn fault(value: &Value) -> Option<String> {
        T::fault(value)
    }
}

pub fn accepts<T: SettingType>(value: &Value) -> bool {
    value.clone().try_into::<T>().is_ok()
}

/// A default as the documentation shows it.
pub fn shown<T: SettingType>(default: &T) -> String {
    use serde_json::Value;
    let quoted = |value: &Value| match value {
        Value::String(text) => format!("`{text}`"),
        Value::Bool(yes) => format!("`{yes}`"),
        other => other.to_string(),
    };
    match serde_json::to_value(default) {
        Ok(Value::Array(values)) if !values.is_empty() => values.iter().map(quoted).collect::<Vec<_>>().join(", "),
        Ok(Value::Null | Value::Array(_)) | Err(_) => "none".to_owned(),
        Ok(value) => quoted(&value),
    }
}

/// The schema of a section: its description, and of each key the description, `name: type = default`, and if need be the words
/// for the default in the documentation (`shown as`) and the range of a number (`in`).
macro_rules! schema {
    (
        $(#[doc = $about:literal])+
        {
            $( $(#[doc = $doc:literal])+
            $key:ident: $type:ty = $default:expr $(, shown as $shown:literal)? $(, in $range:expr)?; )+
        }
    ) => {
        $crate::platform::settings::Schema {
            description: concat!($($about),+),
            keys: &[ $( $crate::platform::settings::Key {
                name: stringify!($key),
                kind: <$type as $crate::platform::settings::SettingType>::KIND,
                default: || $crate::platform::settings::schema!(@default $type, $default $(, $shown)?),
                range: $crate::platform::settings::schema!(@range $($range)?),
                description: concat!($($doc),+),
                accepts: $crate::platform::settings::accepts::<$type>,
                fault: <$type as $crate::platform::settings::SettingType>::fault,
            }, )+ ],
        }
    };
    (@default $type:ty, $default:expr) => { $crate::platform::settings::shown::<$type>(&$default) };
    (@default $type:ty, $default:expr, $shown:literal) => { $shown.to_owned() };
    (@range) => { None };
    (@range $range:expr) => { Some($range) };
}

/// A struct with one field for each key, and its schema.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+
            $key:ident: $type:ty = $default:expr $(, shown as $shown:literal)? $(, in $range:expr)?; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(default)]
        pub struct $name { $( $(#[doc = $doc])+ pub $key: $type, )+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )+ }
            }
        }

        impl $name {
            pub const SCHEMA: $crate::platform::settings::Schema = $crate::platform::settings::schema! {
                $(#[doc = $about])+
                { $( $(#[doc = $doc])+ $key: $type = $default $(, shown as $shown)? $(, in $range)?; )+ }
            };
        }
    };
}

pub(crate) use {schema, section};
