//! The scenes of the harness's soak module, as often as asked: what `tests/soak` and `tests/power-cut` run.

use std::process::ExitCode;

use plimsoll_tests::disk::Disk;
use plimsoll_tests::{Site, soak};
use tempfile::TempDir;

const USAGE: &str =
    "usage: plimsoll-soak kill | updates | faults | power device | power server, then TIMES SEED";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let numbers = args.split_off(args.len().saturating_sub(2));
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let [times, seed] = &numbers[..] else { return usage() };
    let (Ok(times), Ok(seed)) = (times.parse::<u32>(), seed.parse::<u64>()) else { return usage() };
    let say = |line: &str| println!("{line}");
    match words[..] {
        ["kill"] => {
            Site::play(2, async |site| {
                println!("{}", soak::kills(site, times, seed, say).await?);
                Ok(())
            })
            .await;
        }
        ["faults"] => {
            Site::play(1, async |site| {
                println!("{}", soak::faults::faults(site, times, say).await?);
                Ok(())
            })
            .await;
        }
        ["updates"] => {
            Site::play(1, async |site| {
                println!("{}", soak::updates(site, times, say).await?);
                Ok(())
            })
            .await;
        }
        ["power", whose @ ("device" | "server")] => {
            let dir = TempDir::with_prefix("plimsoll-power-").expect("a temporary folder");
            let (at, devices) = if whose == "device" { ("camera-1", 1) } else { ("server", 2) };
            let disk = match Disk::make(&dir.path().join("disk.img"), &dir.path().join(at)).await {
                Ok(disk) => disk,
                Err(error) => {
                    eprintln!("no disk can be cut here: {error:#}");
                    return ExitCode::FAILURE;
                }
            };
            Site::play_in(dir.path(), devices, &[], async |site| {
                if whose == "device" {
                    println!("{}", soak::power::device(site, &disk, times, seed, say).await?);
                } else {
                    println!("{}", soak::power::server(site, &disk, times, seed, say).await?);
                }
                Ok(())
            })
            .await;
        }
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
