//! JSON as Apple's encoder prints it: blanks on both sides of the colon, escaped slashes, keys in no order to rely on.

use serde_json::Value;

pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let indent = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    match value {
        Value::Array(items) if items.is_empty() => out.push_str("[\n\n]"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                indent(out, depth + 1);
                write(item, depth + 1, out);
            }
            indent(out, depth);
            out.push(']');
        }
        Value::Object(map) => {
            // Another order each time, as with a hashed dictionary.
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_cached_key(|_| uuid::Uuid::new_v4());
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                indent(out, depth + 1);
                out.push_str(&escaped(key));
                out.push_str(" : ");
                write(&map[key], depth + 1, out);
            }
            indent(out, depth);
            out.push('}');
        }
        Value::String(text) => out.push_str(&escaped(text)),
        other => out.push_str(&other.to_string()),
    }
}

fn escaped(text: &str) -> String {
    Value::from(text).to_string().replace('/', "\\/")
}
