//! MQTT in and out: readings of sensors on a local broker become requests, answers become messages.
//!
//! A source subscribes to topics, takes the model's columns out of each message by JSON path, asks the model that
//! answers at that moment, and publishes the prediction with the version that gave it and its prediction id. Nothing
//! is kept: a reading that finds everything busy is dropped and counted, because the next one is worth more.
//! [`message`] is pure; [`link`] speaks with the broker.

mod link;
mod message;

use std::collections::BTreeMap;
use std::path::PathBuf;

use plimsoll_protocol::ModelName;
use serde::{Deserialize, Serialize};

pub use link::run;
pub use message::JsonPath;

/// Largest settings as JSON: the order that carries them to the serving child is a line of at most 64 KiB.
const MAX_SETTINGS: usize = 48 * 1024;
/// In the topic of answers: the topic of the reading.
const TOPIC: &str = "{topic}";

/// The `[mqtt]` table of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// `host:port`. The way there is not encrypted: a broker on this device or on its own network.
    pub broker: String,
    /// How it is known to the broker; `plimsoll-<host name>` when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// User, for a broker that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File whose first line is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// What is asked of which model.
    #[serde(default, rename = "source")]
    pub sources: Vec<Source>,
}

/// One `[[mqtt.source]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Topics of readings, with MQTT's wildcards: `plant/+/telemetry`.
    pub topic: String,
    /// The model that is asked.
    pub model: ModelName,
    /// Topic of answers; `{topic}` stands for the topic of the reading.
    pub publish: String,
    /// Where each column of the model stands in a message; a column that is not named here stands at `$.<column>`.
    #[serde(default)]
    pub fields: BTreeMap<String, JsonPath>,
}

impl Bridge {
    /// Refuses what could not work, naming it.
    pub fn check(&self) -> Result<(), String> {
        self.address()?;
        if self.sources.is_empty() {
            return Err("there is no [[mqtt.source]], so there would be nothing to do".into());
        }
        if self.password_file.is_some() && self.username.is_none() {
            return Err("password_file needs a username".into());
        }
        for source in &self.sources {
            source.check()?;
            let feeds = |other: &&Source| matches(&other.topic, &source.publish);
            if let Some(other) = self.sources.iter().find(feeds) {
                let (to, from) = (&source.publish, &other.topic);
                return Err(format!("answers to {to:?} would be read again as readings of {from:?}"));
            }
        }
        let size = serde_json::to_vec(self).map_or(usize::MAX, |json| json.len());
        if size > MAX_SETTINGS {
            return Err(format!("the table takes {size} bytes as JSON; at most {MAX_SETTINGS} are possible"));
        }
        Ok(())
    }

    /// Host and port of the broker.
    pub fn address(&self) -> Result<(String, u16), String> {
        let parts = self.broker.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() && !host.contains('/') => {
                Ok((host.trim_matches(['[', ']']).to_owned(), port))
            }
            _ => Err(format!("broker = {:?} is not host:port, as in 127.0.0.1:1883", self.broker)),
        }
    }
}

impl Source {
    fn check(&self) -> Result<(), String> {
        let topic = &self.topic;
        let levels: Vec<&str> = topic.split('/').collect();
        let whole = |(at, level): (usize, &&str)| match *level {
            "#" => at + 1 == levels.len(),
            "+" => true,
            level => !level.contains(['#', '+']),
        };
        if topic.is_empty() || !levels.iter().enumerate().all(whole) {
            return Err(format!(
                "topic = {topic:?} is not a topic filter: # ends it, + stands for one whole level"
            ));
        }
        let publish = self.publish.replace(TOPIC, "");
        if publish.is_empty() || publish.contains(['#', '+']) {
            let publish = &self.publish;
            return Err(format!("publish = {publish:?} is not a topic of its own without wildcards"));
        }
        Ok(())
    }

    /// Topic of the answer to a reading of `topic`.
    fn answer_topic(&self, topic: &str) -> String {
        self.publish.replace(TOPIC, topic)
    }
}

/// Whether a topic filter takes a topic.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(text: &str) -> Result<Bridge, String> {
        let bridge: Bridge = toml::from_str(text).map_err(|e| e.to_string())?;
        bridge.check().map(|()| bridge)
    }

    #[test]
    fn a_table_is_read_and_its_mistakes_are_named() {
        let good = "broker = \"127.0.0.1:1883\"\n[[source]]\ntopic = \"plant/+/data\"\nmodel = \"meter\"\n\
                    publish = \"answers/{topic}\"\nfields = { flow = \"$.sensors[0].flow\" }\n";
        let read = bridge(good).unwrap();
        assert_eq!(read.address(), Ok(("127.0.0.1".into(), 1883)));
        assert_eq!(read.sources[0].answer_topic("plant/7/data"), "answers/plant/7/data");
        for (from, to, words) in [
            ("127.0.0.1:1883", "mqtt://here", "host:port"),
            ("plant/+/data", "plant/a+/data", "topic filter"),
            ("plant/+/data", "#", "read again as readings"),
            ("answers/{topic}", "answers/#", "without wildcards"),
            ("answers/{topic}", "{topic}", "of its own"),
            ("answers/{topic}", "plant/7/data", "read again as readings"),
            ("$.sensors[0].flow", "$.sensors[", "JSON path"),
            ("model = \"meter\"", "modle = \"meter\"", "modle"),
        ] {
            let error = bridge(&good.replace(from, to)).unwrap_err();
            assert!(error.contains(words), "{to:?}: {error:?} does not say {words:?}");
        }
        assert!(bridge("broker = \"a:1\"").unwrap_err().contains("[[mqtt.source]]"));
    }

    #[test]
    fn filters_match_as_brokers_do() {
        for (filter, topic, expect) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("+", "a/b", false),
            ("a", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), expect, "{filter} {topic}");
        }
    }
}
