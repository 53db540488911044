//! What `deploy/` offers works with the programs as they are: settings are accepted, units are valid and closed, the
//! dashboard asks for numbers that exist; and whatever command a guide, a page or an error names can be typed.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use plimsoll_tests::{Binaries, Process, until};
use serde_json::Value;

/// A debug build starts in about a second; this is only the end of hope.
const START_LIMIT: Duration = Duration::from_secs(60);
/// `systemd-analyze security` gives 0 to an unreachable and 10 to an open service; below 2 is its best grade, "OK".
/// The option takes tenths.
const EXPOSURE_TENTHS: &str = "--threshold=20";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

#[test]
fn the_sample_settings_of_a_device_are_accepted_and_a_wrong_key_in_them_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let check = |file: &Path| {
        let agent = Binaries::locate().unwrap().agent();
        let state = dir.path().join("state");
        std::fs::create_dir_all(&state).unwrap();
        let output =
            Command::new(agent).args(["check", "--config"]).arg(file).arg("--state-dir").arg(state).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    // 1: it looked at the device, which is not enrolled. 2 would be: the settings are wrong.
    let (code, text) = check(&deploy("agent.toml"));
    assert!(code == Some(1) && text.contains("enrolment"), "{code:?}: {text}");

    let wrong = dir.path().join("wrong.toml");
    let sample = std::fs::read_to_string(deploy("agent.toml")).unwrap();
    std::fs::write(&wrong, sample.replace("window_s", "windw_s")).unwrap();
    let (code, text) = check(&wrong);
    assert!(code == Some(2) && text.contains("windw_s"), "{code:?}: {text}");
}

/// The server, started from the sample settings but on ports of its own; `work` gets its address for operators.
fn with_sample_server<T>(work: impl AsyncFnOnce(&str) -> Result<T>) -> T {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mut args: Vec<OsString> = vec!["serve".into(), "--config".into(), deploy("server.toml").into()];
    args.extend(["--state-dir".into(), state.clone().into()]);
    for listener in ["http", "https", "mqtt", "dashboard"] {
        args.extend([format!("--listen-{listener}").into(), "127.0.0.1:0".into()]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let program = Binaries::locate().unwrap().server();
        let server = Process::start("server", &program, &args, &dir.path().join("server.log")).unwrap();
        let address = until("the server to say where it listens", START_LIMIT, || async {
            let text = std::fs::read_to_string(state.join("addresses.json")).context("no addresses.json")?;
            let addresses: Value = serde_json::from_str(&text).context("addresses.json is half written")?;
            Ok(addresses["http"].as_str().context("no http in addresses.json")?.to_owned())
        })
        .await;
        let done = match &address {
            Ok(address) => work(&format!("http://{address}")).await,
            Err(error) => panic!("{error:#}\n{}", server.tail()),
        };
        let done = done.unwrap_or_else(|e| panic!("{e:#}\n{}", server.tail()));
        server.stop().await.unwrap();
        done
    })
}

/// Every `plimsoll_…` in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("plimsoll_")).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_asks_only_for_numbers_that_the_server_with_sample_settings_exposes() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // Err: another test of this process did
    let page = with_sample_server(async |base| {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let page = client.get(format!("{base}/metrics")).send().await.context("GET /metrics")?;
        page.error_for_status().context("GET /metrics")?.text().await.context("GET /metrics")
    });
    let types = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    let exposed: BTreeSet<String> = types.map(str::to_owned).collect();

    let dashboard = std::fs::read_to_string(deploy("monitoring/fleet.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
    let asked: Vec<&str> = targets.map(|t| t["expr"].as_str().unwrap()).collect();
    assert!(asked.iter().all(|expr| !metric_names(expr).is_empty()), "{asked:?}");
    let asked = metric_names(&asked.join("\n"));
    let unknown: Vec<&String> = asked.difference(&exposed).collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}; the server has {exposed:?}");
}

#[test]
fn the_units_are_valid_and_closed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("the units are not checked: systemd-analyze is not installed");
        return;
    }
    for name in ["plimsoll-agent", "plimsoll-server"] {
        // The units name programs where they will be installed; here something else stands in for them.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(format!("{name}.service"));
        let unit = std::fs::read_to_string(deploy(&format!("systemd/{name}.service"))).unwrap();
        std::fs::write(&file, unit.replace(&format!("/usr/local/bin/{name}"), "/bin/true")).unwrap();
        for args in [&["verify"][..], &["security", "--offline=true", "--no-pager", EXPOSURE_TENTHS]] {
            let output = Command::new("systemd-analyze").args(args).arg(&file).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "systemd-analyze {args:?} of {name}: {text}");
            if args == ["verify"] {
                assert_eq!(text.trim(), "", "systemd-analyze verify of {name} has words to say");
            }
        }
    }
}

/// A command that is written somewhere: program, words of the command, flags; and one place where it stands.
type Mentions = BTreeMap<(String, Vec<String>), (BTreeSet<String>, PathBuf)>;

/// Files of this tree in which people read commands.
fn written(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && name != "target" && name != "corpus" {
                written(&path, found);
            }
        } else if ["md", "rs", "service", "toml", "sh", "yml"]
            .iter()
            .any(|e| name.ends_with(&format!(".{e}")))
        {
            found.push(path);
        }
    }
}

/// The commands of one line: after a back quote or a quote up to the next one, or at the beginning of a line up to a
/// remark.
fn mentions(line: &str) -> Vec<(String, Vec<String>, BTreeSet<String>)> {
    let is_word = |w: &&str| {
        w.starts_with(|c: char| c.is_ascii_lowercase())
            && w.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    let starts = line.match_indices("plimsoll").filter_map(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let end = match before.chars().last() {
            None => '#',
            Some(quote @ ('`' | '"')) => quote,
            Some(_) if before.trim().is_empty() => '#',
            Some(_) => return None,
        };
        rest.split(end).next()
    });
    let parse = |text: &str| {
        let mut words = text.split_whitespace();
        let program =
            words.next().filter(|p| ["plimsoll", "plimsoll-agent", "plimsoll-server"].contains(p))?;
        let rest: Vec<&str> = words.collect();
        let command: Vec<String> =
            rest.iter().copied().take_while(is_word).take(2).map(str::to_owned).collect();
        let flag = |word: &&str| {
            word.strip_prefix("--")
                .and_then(|w| w.split(['=', '.', ',', ';', ')', ']']).next())
                .map(str::to_owned)
        };
        let flags = rest.iter().filter_map(flag).filter(|w| !w.is_empty()).collect();
        (!command.is_empty()).then(|| (program.to_owned(), command, flags))
    };
    starts.filter_map(parse).collect()
}

#[test]
fn every_command_that_is_written_can_be_typed() {
    let mut files = Vec::new();
    written(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
    let mut all = Mentions::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for (program, command, flags) in text.lines().flat_map(mentions) {
            all.entry((program, command)).or_insert_with(|| (BTreeSet::new(), file.clone())).0.extend(flags);
        }
    }
    assert!(all.len() > 50, "{} commands were found: how are they written now?", all.len());
    let binaries = Binaries::locate().unwrap();
    let mut wrong = Vec::new();
    for ((program, command), (flags, file)) in all {
        let path = match program.as_str() {
            "plimsoll" => binaries.ctl(),
            "plimsoll-agent" => binaries.agent(),
            _ => binaries.server(),
        };
        let output = Command::new(path).args(&command).arg("--help").output().unwrap();
        let help = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            wrong.push(format!("{program} {} does not exist: {}", command.join(" "), file.display()));
            continue;
        }
        let known: BTreeSet<&str> = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
        for flag in flags.iter().filter(|flag| !known.contains(format!("--{flag}").as_str())) {
            wrong.push(format!("{program} {} has no --{flag}: {}", command.join(" "), file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
