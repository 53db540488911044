//! CSV as RFC 4180 has it, with the line on which each record begins: what a person needs to find a bad row. Libraries
//! count lines as they consume them, so that a blank line or a CRLF before a row moves its number.

use std::io::{self, BufRead, Read};

/// Longest record: the largest request body without a configuration.
const MAX_RECORD: u64 = crate::serve::bundle::DEFAULT_MAX_BODY;

/// Records of a stream.
pub struct Records<R> {
    input: R,
    /// Lines read.
    line: u64,
}

/// The line, from 1, on which a record begins, and its cells or what is wrong with it.
pub type Record = (u64, Result<Vec<String>, String>);

impl<R: BufRead> Records<R> {
    /// From the beginning of a stream.
    pub const fn new(input: R) -> Self {
        Self { input, line: 0 }
    }

    /// The next record that is not blank, or `None` at the end.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        let mut text = Vec::new();
        let mut begins = self.line + 1;
        loop {
            let room = MAX_RECORD - text.len() as u64;
            let read = self.input.by_ref().take(room).read_until(b'\n', &mut text)?;
            self.line += u64::from(read > 0);
            let at_end = read == 0 || text.len() as u64 == MAX_RECORD;
            // A line break inside of quotes belongs to a cell.
            let open = text.iter().filter(|b| **b == b'"').count() % 2 == 1;
            if open && !at_end {
                continue;
            }
            if text.is_empty() {
                return Ok(None);
            }
            if text.trim_ascii().is_empty() && !at_end {
                text.clear();
                begins = self.line + 1;
                continue;
            }
            let text = text.strip_suffix(b"\n").unwrap_or(&text);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            // A byte order mark, as some spreadsheets write it.
            let text = if begins == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
            return Ok(match std::str::from_utf8(text) {
                Ok("") => None,
                Ok(text) => Some((begins, cells(text))),
                Err(_) => Some((begins, Err("it is not UTF-8 text".into()))),
            });
        }
    }
}

/// Cells of one record.
fn cells(text: &str) -> Result<Vec<String>, String> {
    let mut cells = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let mut cell = String::new();
        let mut more = false;
        if rest.next_if_eq(&'"').is_some() {
            loop {
                match rest.next() {
                    Some('"') if rest.next_if_eq(&'"').is_some() => cell.push('"'),
                    Some('"') => break,
                    Some(c) => cell.push(c),
                    None => return Err("a quote is not closed".into()),
                }
            }
            match rest.next() {
                None => {}
                Some(',') => more = true,
                Some(c) => return Err(format!("{c:?} follows a closing quote")),
            }
        } else {
            for c in rest.by_ref() {
                if c == ',' {
                    more = true;
                    break;
                }
                cell.push(c);
            }
        }
        cells.push(cell);
        if !more {
            return Ok(cells);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Record> {
        let mut records = Records::new(text);
        std::iter::from_fn(|| records.next_record().unwrap()).collect()
    }

    #[test]
    fn records_have_the_line_on_which_they_begin() {
        let text = b"\xef\xbb\xbf\"a\",b\r\n\r\n1,\"x\r\ny\"\r\n\n\n \"q\",\"say \"\"no\"\"\"\n2,";
        let cell = |text: &str| text.to_owned();
        assert_eq!(
            all(text),
            [
                (1, Ok(vec![cell("a"), cell("b")])),
                (3, Ok(vec![cell("1"), cell("x\r\ny")])),
                (7, Ok(vec![cell(" \"q\""), cell("say \"no\"")])),
                (8, Ok(vec![cell("2"), cell("")])),
            ]
        );
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\n\n  \n"), []);
    }

    #[test]
    fn what_is_no_record_is_told_and_the_next_one_still_read() {
        let read = all(b"\"a\"b,1\n\xff,2\n3,4\n\"open,5\n6,7");
        let words = |at: usize| read[at].1.clone().unwrap_err();
        assert!(words(0).contains("follows a closing quote") && words(1).contains("UTF-8"), "{read:?}");
        assert_eq!(read[2], (3, Ok(vec!["3".into(), "4".into()])));
        assert!(read[3].0 == 4 && words(3).contains("not closed") && read.len() == 4, "{read:?}");
    }
}
