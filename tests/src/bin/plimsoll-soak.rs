//! The scenes of the harness's soak module, as often as asked: what `tests/soak` runs.

use std::process::ExitCode;

use plimsoll_tests::{Site, soak};

const USAGE: &str = "usage: plimsoll-soak kill TIMES SEED";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["kill", times, seed] => match (times.parse(), seed.parse()) {
            (Ok(times), Ok(seed)) => {
                Site::play(2, async |site| {
                    let seen = soak::kills(site, times, seed, |line| println!("{line}")).await?;
                    println!("{seen}");
                    Ok(())
                })
                .await;
                ExitCode::SUCCESS
            }
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
