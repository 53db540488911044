//! Canonical JSON as TUF signs it (the OLPC form): members sorted by the bytes of their names, no white space,
//! only `"` and `\` escaped, integers only.

use serde_json::Value;

/// The canonical form of a value.
///
/// A fraction is an error: its text is not unique, so two sides could sign two different things.
pub fn canonical(value: &Value) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(512);
    write(value, &mut out)?;
    Ok(out)
}

// Recursion is bounded: serde_json refuses documents nested deeper than 128.
fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) if n.is_i64() || n.is_u64() => out.extend_from_slice(n.to_string().as_bytes()),
        Value::Number(n) => return Err(format!("number {n} is not an integer, so it has no canonical form")),
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // Sorted here and not left to the map's type, which a cargo feature elsewhere can change.
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            out.push(b'{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expect: &str) {
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(String::from_utf8(canonical(&value).unwrap()).unwrap(), expect);
    }

    #[test]
    fn members_are_sorted_and_space_is_dropped() {
        check(
            r#"{ "b": [1, -2, true, null], "a": {"z": "", "B": 0} }"#,
            r#"{"a":{"B":0,"z":""},"b":[1,-2,true,null]}"#,
        );
    }

    #[test]
    fn only_the_quote_and_the_backslash_are_escaped() {
        check(r#"{"k":"a\"b\\c\nd\u00e9"}"#, "{\"k\":\"a\\\"b\\\\c\nd\u{e9}\"}");
    }

    #[test]
    fn fractions_have_no_canonical_form() {
        for json in ["1.5", "[1e3]", r#"{"a":-0.0}"#, "1e400000"] {
            let Ok(value) = serde_json::from_str::<Value>(json) else { continue };
            assert!(canonical(&value).is_err(), "{json}");
        }
    }
}
