//! Maintenance hours: when a device may update, in the device's own local time.
//!
//! A set of weekly spans, written as people write them: `Mon-Fri 02:00-04:30`, `Sat,Sun 22:00-06:00` (into the next
//! morning), `01:00-05:00` (every day). No span at all means any time. Both sides read the same texts: the operator's
//! command and the server to refuse a mistake early, the device to decide.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAY: u16 = 24 * 60;
const WEEK: u16 = 7 * DAY;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Most spans: one a day and one more. With [`MAX_SPAN_TEXT`] it bounds what the device's anchor keeps.
pub const MAX_SPANS: usize = 8;
/// Longest text of a span: all seven days by name and two times are 39 bytes.
pub const MAX_SPAN_TEXT: usize = 40;

/// A moment of the local week: minutes since Monday 00:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalTime(u16);

impl LocalTime {
    /// `weekday` counts from Monday = 0. Values beyond a week wrap around.
    pub const fn new(weekday: u8, hour: u8, minute: u8) -> Self {
        Self((weekday as u16 * DAY + hour as u16 * 60 + minute as u16) % WEEK)
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (day, minute) = (self.0 / DAY, self.0 % DAY);
        write!(f, "{} {:02}:{:02}", DAYS[usize::from(day)], minute / 60, minute % 60)
    }
}

/// Weekly spans in which updates may start and go on. The default is any time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct MaintenanceHours(Vec<Span>);

/// Days and times of one span; `to` is exclusive and at most 24:00. With `to` at or before `from` it reaches into the
/// next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    to: u16,
}

/// A text that is not a span of maintenance hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("maintenance hours {text:?}: {why}; write for example \"Mon-Fri 02:00-04:30\" or \"22:00-06:00\"")]
pub struct HoursError {
    /// As given, cut to [`MAX_SPAN_TEXT`] characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl MaintenanceHours {
    /// Reads one text a span.
    pub fn parse(texts: &[impl AsRef<str>]) -> Result<Self, HoursError> {
        if texts.len() > MAX_SPANS {
            let text = texts.get(MAX_SPANS).map_or("", AsRef::as_ref);
            return Err(error(text, "there are more than 8 spans"));
        }
        texts.iter().map(|t| t.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is no restriction.
    pub const fn is_any_time(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether updates may go on at this moment.
    pub fn open(&self, at: LocalTime) -> bool {
        self.is_any_time() || self.0.iter().any(|span| span.covers(at.0))
    }

    /// Minutes until [`MaintenanceHours::open`] answers otherwise than now; `None` when it never does. The changes of
    /// a summer time are not seen here: who waits looks again when the time has come.
    pub fn changes_in(&self, at: LocalTime) -> Option<u16> {
        let now = self.open(at);
        (1..=WEEK).find(|minutes| self.open(LocalTime((at.0 + minutes) % WEEK)) != now)
    }
}

impl Span {
    fn covers(&self, minute: u16) -> bool {
        let (day, minute) = (minute / DAY, minute % DAY);
        let on = |day: u16| self.days & (1 << day) != 0;
        if self.from < self.to {
            return on(day) && (self.from..self.to).contains(&minute);
        }
        (on(day) && minute >= self.from) || (on((day + 6) % 7) && minute < self.to)
    }
}

impl FromStr for Span {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let refuse = |why| error(text, why);
        if text.len() > MAX_SPAN_TEXT {
            return Err(refuse("it is longer than 40 characters"));
        }
        let mut words = text.split_whitespace();
        let (days, times) = match (words.next(), words.next(), words.next()) {
            (Some(times), None, None) => (0x7f, times),
            (Some(names), Some(times), None) => (days(names).ok_or_else(|| refuse("no such days"))?, times),
            _ => return Err(refuse("days and one span of times are expected")),
        };
        let (from, to) = times.split_once('-').ok_or_else(|| refuse("a span is two times with a dash"))?;
        let clock = |t| clock(t).ok_or_else(|| refuse("a time is between 00:00 and 24:00"));
        let (from, to) = (clock(from)?, clock(to)?);
        if from == to || from == DAY {
            return Err(refuse("it is empty"));
        }
        Ok(Self { days, from, to })
    }
}

/// `Mon-Fri`, `Sat,Sun`, `Fri-Mon` (over the week's end), any case.
fn days(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|d| d.eq_ignore_ascii_case(name));
    let mut bits = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        for step in 0..=(last + 7 - first) % 7 {
            bits |= 1 << ((first + step) % 7);
        }
    }
    Some(bits)
}

fn clock(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number =
        |t: &str| t.parse::<u16>().ok().filter(|_| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit()));
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let at = hours * 60 + minutes;
    (minutes < 60 && at <= DAY).then_some(at)
}

fn error(text: &str, why: &'static str) -> HoursError {
    HoursError { text: text.chars().take(MAX_SPAN_TEXT).collect(), why }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = (0..7).filter(|d| self.days & (1 << d) != 0).map(|d| DAYS[d]).collect();
        if names.len() < 7 {
            write!(f, "{} ", names.join(","))?;
        }
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl fmt::Display for MaintenanceHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any_time() {
            return f.write_str("any time");
        }
        let spans: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&spans.join("; "))
    }
}

impl TryFrom<Vec<String>> for MaintenanceHours {
    type Error = HoursError;
    fn try_from(texts: Vec<String>) -> Result<Self, HoursError> {
        Self::parse(&texts)
    }
}

impl From<MaintenanceHours> for Vec<String> {
    fn from(hours: MaintenanceHours) -> Self {
        hours.0.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
