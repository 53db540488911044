//! The `data` member of a tensor: numbers, booleans or texts, flat or nested by dimension, before anybody knows
//! which datatype they should have.

use std::fmt;

use plimsoll_protocol::bundle::DataType;
use plimsoll_runtime::{Data, bf16_bits, f16_bits};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// Elements in row-major order, of the narrowest kind that holds them all.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Flat {
    /// No element yet.
    #[default]
    Empty,
    /// So many elements, all of them `null`.
    Nulls(usize),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    /// None negative, at least one beyond an i64.
    Uints(Vec<u64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

/// The elements as a datatype; the error says which element is wrong.
pub fn typed(flat: Flat, datatype: DataType) -> Result<Data, String> {
    match (flat, datatype) {
        (Flat::Empty, kind) => Ok(empty(kind)),
        (Flat::Nulls(n), DataType::Bytes) => Ok(Data::Bytes(vec![Vec::new(); n])),
        (Flat::Nulls(n), kind) if is_float(kind) => typed(Flat::Floats(vec![f64::NAN; n]), kind),
        (Flat::Nulls(_), kind) => {
            Err(format!("data[0] is null, and {} has no value for that", kind.as_str()))
        }
        (Flat::Texts(v), kind) if is_float(kind) && v.iter().all(|text| named(text).is_some()) => {
            typed(Flat::Floats(v.iter().filter_map(|text| named(text)).collect()), kind)
        }
        (Flat::Bools(v), DataType::Bool) => Ok(Data::Bool(v)),
        (Flat::Texts(v), DataType::Bytes) => Ok(Data::Bytes(v.into_iter().map(String::into_bytes).collect())),
        (flat @ (Flat::Ints(_) | Flat::Uints(_)), kind) if is_integer(kind) => integers(&flat, kind),
        (Flat::Floats(v), DataType::Fp64) => Ok(Data::Fp64(v)),
        (Flat::Floats(v), DataType::Fp32) => Ok(Data::Fp32(v.into_iter().map(|x| x as f32).collect())),
        (Flat::Floats(v), DataType::Fp16) => {
            Ok(Data::Fp16(v.into_iter().map(|x| f16_bits(x as f32)).collect()))
        }
        (Flat::Floats(v), DataType::Bf16) => {
            Ok(Data::Bf16(v.into_iter().map(|x| bf16_bits(x as f32)).collect()))
        }
        (Flat::Ints(v), kind) if is_float(kind) => {
            typed(Flat::Floats(v.into_iter().map(|x| x as f64).collect()), kind)
        }
        (Flat::Uints(v), kind) if is_float(kind) => {
            typed(Flat::Floats(v.into_iter().map(|x| x as f64).collect()), kind)
        }
        (Flat::Floats(v), kind) if is_integer(kind) => {
            let at = v.iter().position(|x| x.fract() != 0.0).unwrap_or(0);
            let value = v.get(at).copied().unwrap_or_default();
            if value.is_nan() {
                return Err(format!(
                    "data[{at}] is null or NaN, and {} has no value for that",
                    kind.as_str()
                ));
            }
            Err(format!("data[{at}] is {value:?}, which is not an integer as {} needs", kind.as_str()))
        }
        (flat, kind) => Err(format!("data holds {}, but the datatype is {}", flat.words(), kind.as_str())),
    }
}

impl Flat {
    const fn words(&self) -> &'static str {
        match self {
            Self::Empty => "nothing",
            Self::Nulls(_) => "nulls",
            Self::Bools(_) => "booleans",
            Self::Ints(_) | Self::Uints(_) | Self::Floats(_) => "numbers",
            Self::Texts(_) => "texts",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Nulls(n) => *n,
            Self::Bools(v) => v.len(),
            Self::Ints(v) => v.len(),
            Self::Uints(v) => v.len(),
            Self::Floats(v) => v.len(),
            Self::Texts(v) => v.len(),
        }
    }

    /// Adds an integer, keeping what is there exact as long as one kind can hold it.
    fn push_int(&mut self, value: i128) -> Result<(), String> {
        match (&mut *self, i64::try_from(value), u64::try_from(value)) {
            (Self::Empty, Ok(v), _) => *self = Self::Ints(vec![v]),
            (Self::Empty, _, Ok(v)) => *self = Self::Uints(vec![v]),
            (Self::Ints(all), Ok(v), _) => all.push(v),
            (Self::Uints(all), _, Ok(v)) => all.push(v),
            (Self::Ints(all), _, Ok(v)) => {
                let wide: Result<Vec<u64>, _> = all.iter().map(|x| u64::try_from(*x)).collect();
                let mut wide =
                    wide.map_err(|_| format!("{value} and a negative number fit no datatype together"))?;
                wide.push(v);
                *self = Self::Uints(wide);
            }
            _ => return self.push_float(value as f64),
        }
        Ok(())
    }

    fn push_float(&mut self, value: f64) -> Result<(), String> {
        if let Self::Floats(all) = self {
            all.push(value);
            return Ok(());
        }
        let mut floats: Vec<f64> = match self {
            Self::Empty => Vec::new(),
            Self::Nulls(n) => vec![f64::NAN; *n],
            Self::Ints(all) => all.iter().map(|x| *x as f64).collect(),
            Self::Uints(all) => all.iter().map(|x| *x as f64).collect(),
            // What has no literal in JSON came first, as text.
            Self::Texts(all) if all.iter().all(|text| named(text).is_some()) => {
                all.iter().filter_map(|text| named(text)).collect()
            }
            _ => return Err(self.mixed("numbers")),
        };
        floats.push(value);
        *self = Self::Floats(floats);
        Ok(())
    }

    /// Nothing is there: NaN among numbers, the empty text among texts.
    fn push_null(&mut self) -> Result<(), String> {
        match self {
            Self::Empty => *self = Self::Nulls(1),
            Self::Nulls(n) => *n += 1,
            Self::Texts(all) => all.push(String::new()),
            Self::Bools(all) => {
                return Err(format!("data[{}] is null, and BOOL has no value for that", all.len()));
            }
            Self::Ints(_) | Self::Uints(_) | Self::Floats(_) => return self.push_float(f64::NAN),
        }
        Ok(())
    }

    fn push_bool(&mut self, value: bool) -> Result<(), String> {
        match self {
            Self::Empty => *self = Self::Bools(vec![value]),
            Self::Bools(all) => all.push(value),
            _ => return Err(self.mixed("booleans")),
        }
        Ok(())
    }

    fn push_text(&mut self, value: &str) -> Result<(), String> {
        match self {
            Self::Empty => *self = Self::Texts(vec![value.to_owned()]),
            Self::Nulls(n) => {
                let mut texts = vec![String::new(); *n];
                texts.push(value.to_owned());
                *self = Self::Texts(texts);
            }
            Self::Texts(all) => all.push(value.to_owned()),
            Self::Ints(_) | Self::Uints(_) | Self::Floats(_) => match named(value) {
                Some(number) => return self.push_float(number),
                None => return Err(self.mixed("texts")),
            },
            Self::Bools(_) => return Err(self.mixed("texts")),
        }
        Ok(())
    }

    fn mixed(&self, what: &str) -> String {
        format!("data mixes {} and {what} at element {}", self.words(), self.len())
    }
}

/// Numbers for which JSON has no literal, by the names that protocol buffers' JSON, JavaScript and Python give them.
fn named(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// The same JSON with bare `NaN`, `Infinity` and `-Infinity` in quotes: Python's encoders write them so, Triton's client
/// among them, and Triton's server reads them. `None` when there is none outside of texts.
pub fn quote_literals(json: &[u8]) -> Option<Vec<u8>> {
    const LITERALS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    // Most that is not JSON has none of them, and is not copied.
    if !LITERALS.iter().any(|literal| json.windows(literal.len()).any(|w| w == *literal)) {
        return None;
    }
    let mut out = Vec::with_capacity(json.len() + json.len() / 4);
    let (mut rest, mut in_text, mut found) = (json, false, false);
    while let Some((first, after)) = rest.split_first() {
        if !in_text && let Some(literal) = LITERALS.iter().find(|literal| rest.starts_with(literal)) {
            out.push(b'"');
            out.extend_from_slice(literal);
            out.push(b'"');
            rest = &rest[literal.len()..];
            found = true;
            continue;
        }
        out.push(*first);
        rest = after;
        match first {
            b'"' => in_text = !in_text,
            b'\\' if in_text => {
                if let Some((escaped, after)) = rest.split_first() {
                    out.push(*escaped);
                    rest = after;
                }
            }
            _ => {}
        }
    }
    found.then_some(out)
}

const fn is_float(kind: DataType) -> bool {
    matches!(kind, DataType::Fp64 | DataType::Fp32 | DataType::Fp16 | DataType::Bf16)
}

const fn is_integer(kind: DataType) -> bool {
    use DataType::{Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(kind, Uint8 | Uint16 | Uint32 | Uint64 | Int8 | Int16 | Int32 | Int64)
}

fn integers(flat: &Flat, kind: DataType) -> Result<Data, String> {
    fn narrow<T: TryFrom<i128>>(flat: &Flat, kind: DataType) -> Result<Vec<T>, String> {
        let convert = |(at, value): (usize, i128)| {
            T::try_from(value)
                .map_err(|_| format!("data[{at}] is {value}, which is outside {}", kind.as_str()))
        };
        match flat {
            Flat::Ints(v) => v.iter().map(|x| i128::from(*x)).enumerate().map(convert).collect(),
            Flat::Uints(v) => v.iter().map(|x| i128::from(*x)).enumerate().map(convert).collect(),
            _ => Ok(Vec::new()),
        }
    }
    Ok(match kind {
        DataType::Uint8 => Data::Uint8(narrow(flat, kind)?),
        DataType::Uint16 => Data::Uint16(narrow(flat, kind)?),
        DataType::Uint32 => Data::Uint32(narrow(flat, kind)?),
        DataType::Uint64 => Data::Uint64(narrow(flat, kind)?),
        DataType::Int8 => Data::Int8(narrow(flat, kind)?),
        DataType::Int16 => Data::Int16(narrow(flat, kind)?),
        DataType::Int32 => Data::Int32(narrow(flat, kind)?),
        _ => Data::Int64(narrow(flat, kind)?),
    })
}

fn empty(kind: DataType) -> Data {
    match kind {
        DataType::Bool => Data::Bool(Vec::new()),
        DataType::Uint8 => Data::Uint8(Vec::new()),
        DataType::Uint16 => Data::Uint16(Vec::new()),
        DataType::Uint32 => Data::Uint32(Vec::new()),
        DataType::Uint64 => Data::Uint64(Vec::new()),
        DataType::Int8 => Data::Int8(Vec::new()),
        DataType::Int16 => Data::Int16(Vec::new()),
        DataType::Int32 => Data::Int32(Vec::new()),
        DataType::Int64 => Data::Int64(Vec::new()),
        DataType::Fp16 => Data::Fp16(Vec::new()),
        DataType::Bf16 => Data::Bf16(Vec::new()),
        DataType::Fp32 => Data::Fp32(Vec::new()),
        DataType::Fp64 => Data::Fp64(Vec::new()),
        DataType::Bytes => Data::Bytes(Vec::new()),
    }
}

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut flat = Self::Empty;
        Into(&mut flat).deserialize(deserializer)?;
        Ok(flat)
    }
}

/// Pours one JSON value, an element or an array of more of them, into a [`Flat`]. serde_json stops at 128 levels.
struct Into<'a>(&'a mut Flat);

impl<'de> DeserializeSeed<'de> for Into<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Into<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, booleans or texts, flat or nested by dimension")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Into(&mut *self.0))?.is_some() {}
        Ok(())
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.push_bool(value).map_err(E::custom)
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.0.push_int(i128::from(value)).map_err(E::custom)
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.0.push_int(i128::from(value)).map_err(E::custom)
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.push_float(value).map_err(E::custom)
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.0.push_text(value).map_err(E::custom)
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.0.push_null().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Flat, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn nested_and_flat_data_are_one() {
        assert_eq!(read("[[1, 2], [3, 4]]"), Ok(Flat::Ints(vec![1, 2, 3, 4])));
        assert_eq!(read("[1, 2.5]"), Ok(Flat::Floats(vec![1.0, 2.5])));
        assert_eq!(read("[2.5, 1]"), Ok(Flat::Floats(vec![2.5, 1.0])));
        assert_eq!(read("[1, 18446744073709551615]"), Ok(Flat::Uints(vec![1, u64::MAX])));
        assert_eq!(read("[[true], [false]]"), Ok(Flat::Bools(vec![true, false])));
        assert_eq!(read("[]"), Ok(Flat::Empty));
    }

    #[test]
    fn what_cannot_be_one_tensor_is_refused_by_element() {
        for (json, expect) in [
            ("[1, true]", "mixes numbers and booleans at element 1"),
            ("[1.0, \"a\"]", "mixes numbers and texts"),
            ("[true, null]", "data[1] is null, and BOOL"),
            ("[0.5, \"NAN\"]", "mixes numbers and texts"),
            ("[\"NaN\", \"b\", 1]", "mixes texts and numbers"),
            ("[-1, 18446744073709551615]", "fit no datatype together"),
            ("[{}]", "numbers, booleans or texts"),
        ] {
            let error = read(json).expect_err(expect);
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        }
    }

    #[test]
    fn a_datatype_takes_only_what_it_can_hold() {
        let check =
            |json: &str, kind, expect: Result<Data, &str>| match (typed(read(json).unwrap(), kind), expect) {
                (Ok(got), Ok(data)) => assert_eq!(got, data),
                (Err(got), Err(words)) => assert!(got.contains(words), "{got:?} does not say {words:?}"),
                (got, expect) => panic!("{json}: {got:?} instead of {expect:?}"),
            };
        check("[1, 255]", DataType::Uint8, Ok(Data::Uint8(vec![1, 255])));
        check("[1, 256]", DataType::Uint8, Err("data[1] is 256, which is outside UINT8"));
        check("[-1]", DataType::Uint64, Err("data[0] is -1, which is outside UINT64"));
        check("[1.0, 1.5]", DataType::Int32, Err("data[1] is 1.5, which is not an integer"));
        check("[1]", DataType::Fp32, Ok(Data::Fp32(vec![1.0])));
        check("[1.5]", DataType::Fp16, Ok(Data::Fp16(vec![0x3e00])));
        check("[1.5, 1]", DataType::Bf16, Ok(Data::Bf16(vec![0x3fc0, 0x3f80])));
        check("[1, null]", DataType::Int64, Err("data[1] is null or NaN, and INT64 has no value for that"));
        check("[null, null]", DataType::Uint8, Err("data[0] is null, and UINT8 has no value for that"));
        check("[null, 1]", DataType::Bool, Err("data holds numbers, but the datatype is BOOL"));
        check("[null, \"a\", null]", DataType::Bytes, Ok(Data::Bytes(vec![vec![], b"a".to_vec(), vec![]])));
        check("[null]", DataType::Bytes, Ok(Data::Bytes(vec![vec![]])));
        check("[\"NaN\"]", DataType::Bytes, Ok(Data::Bytes(vec![b"NaN".to_vec()])));
        check("[\"NaN\", \"a\"]", DataType::Fp32, Err("data holds texts"));
        check("[1]", DataType::Bool, Err("data holds numbers, but the datatype is BOOL"));
        check("[\"a\"]", DataType::Bytes, Ok(Data::Bytes(vec![b"a".to_vec()])));
        check("[\"a\"]", DataType::Fp32, Err("data holds texts, but the datatype is FP32"));
    }

    #[test]
    fn what_json_has_no_number_for_is_null_or_named() {
        let floats = |json: &str| match typed(read(json).unwrap(), DataType::Fp64) {
            Ok(Data::Fp64(v)) => v.iter().map(f64::to_string).collect::<Vec<_>>().join(" "),
            other => panic!("{json}: {other:?}"),
        };
        assert_eq!(floats("[1, null, 2.5]"), "1 NaN 2.5");
        assert_eq!(floats("[null, [null]]"), "NaN NaN");
        assert_eq!(floats("[\"NaN\", 1, \"-Infinity\"]"), "NaN 1 -inf");
        assert_eq!(floats("[\"Infinity\"]"), "inf");
        assert_eq!(floats("[18446744073709551615, null]"), "18446744073709552000 NaN");
    }

    #[test]
    fn bare_literals_are_quoted_outside_of_texts_only() {
        let quoted = |json: &str| quote_literals(json.as_bytes()).map(|v| String::from_utf8(v).unwrap());
        assert_eq!(quoted("[NaN, -Infinity,Infinity]"), Some(r#"["NaN", "-Infinity","Infinity"]"#.into()));
        assert_eq!(
            quoted(r#"{"NaN": "a \" NaN", "b": NaN}"#),
            Some(r#"{"NaN": "a \" NaN", "b": "NaN"}"#.into())
        );
        assert_eq!(quoted(r#"["NaN", "\\", "Infinity"]"#), None);
        assert_eq!(quoted("[1, 2]"), None);
    }
}
