//! Block deltas over synthetic models: bytes, time to build, and speed and memory of applying one.
//!
//! Eight tensors of half a million weights in an ONNX file. The weights are normal with a standard deviation that
//! differs by tensor, and a retraining moves each by a normal step of 0.1 % (`tuned`) or 1 % (`retrained`) of it.
//! `head` changes the last tensor's last third (4 % of all) and nothing else. INT8 weights are quantised with one
//! scale a tensor.
//!
//! `cargo bench -p plimsoll-server --bench delta [-- FOLDER]` prints `name value unit`; with a folder the files stay
//! there, for `tests/bench/delta`, which puts other tools beside it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::delta::{Header, Next, Reader};
use plimsoll_server::delta::{Built, build};

const TENSORS: usize = 8;
const WEIGHTS: usize = 512 * 1024;
/// What arrives at once: a TLS record.
const CHUNK: usize = 16 * 1024;
/// Runs of an application, of which the best counts.
const RUNS: usize = 5;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list" | "--test", ..] => Ok(()), // a test runner that enumerates benches
        ["apply", old, new, delta] => apply_alone(old.as_ref(), new.as_ref(), delta.as_ref()),
        [folder] => run(folder.as_ref()),
        [] => run(tempfile::tempdir()?.path()),
        _ => bail!("one folder, or nothing"),
    }
}

/// With the number of its `TensorProto.DataType`.
#[derive(Clone, Copy)]
enum Kind {
    Fp32 = 1,
    Bf16 = 16,
    Int8 = 3,
}

fn run(folder: &Path) -> Result<()> {
    let kinds = [("fp32", Kind::Fp32), ("bf16", Kind::Bf16), ("int8", Kind::Int8)];
    for (name, kind) in kinds {
        for (change, step, head_only) in
            [("tuned", 1e-3, false), ("retrained", 1e-2, false), ("head", 1.0, true)]
        {
            let case = format!("{name}_{change}");
            let dir = folder.join(&case);
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("old.onnx"), model(kind, 0.0, false))?;
            std::fs::write(dir.join("new.onnx"), model(kind, step, head_only))?;
            measure(&case, &dir)?;
        }
    }
    Ok(())
}

fn measure(case: &str, dir: &Path) -> Result<()> {
    let (old, new, out) = (dir.join("old.onnx"), dir.join("new.onnx"), dir.join("delta"));
    let header = header(&old, &new)?;
    let _ = std::fs::remove_file(&out);
    let body = dir.join("body");
    let started = Instant::now();
    let built = build(header, &File::open(&old)?, &File::open(&new)?, &body, &out)?;
    let took = started.elapsed().as_secs_f64();
    std::fs::remove_file(body)?;
    let megabytes = header.new_size as f64 / 1e6;
    println!("delta_{case}_file {} bytes", header.new_size);
    let size = match built {
        Built::Delta { size, .. } => size,
        Built::Worthless(why) => {
            println!("delta_{case}_blocks_share 1.000 of_file ({why})");
            return Ok(());
        }
    };
    println!("delta_{case}_blocks_share {:.3} of_file", size as f64 / header.new_size as f64);
    println!("delta_{case}_build {:.1} MB/s", megabytes / took);
    // In a process of its own, so that its peak is that of the application.
    let own = std::env::current_exe()?;
    let output = Command::new(own).arg("apply").args([&old, &new, &out]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout)?.lines() {
        println!("delta_{case}_{line}");
    }
    Ok(())
}

/// Applies as a device does, best of some runs; then says by how much the process has grown at its peak.
fn apply_alone(old: &Path, new: &Path, delta: &Path) -> Result<()> {
    let header = header(old, new)?;
    let before = peak_kib()?;
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let started = Instant::now();
        let digest = apply(header, old, delta)?;
        best = best.min(started.elapsed().as_secs_f64());
        ensure!(digest == header.new, "another file resulted");
    }
    println!("apply {:.0} MB/s", header.new_size as f64 / 1e6 / best);
    println!("apply_peak {} KiB", peak_kib()? - before);
    Ok(())
}

fn apply(header: Header, old: &Path, delta: &Path) -> Result<Digest> {
    let (old, mut delta) = (File::open(old)?, File::open(delta)?);
    let mut out = tempfile::tempfile()?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut reader, mut chunk, mut filled, mut used) = (Reader::new(header, 0), vec![0; CHUNK], 0, 0);
    loop {
        match reader.next()? {
            Next::Done => break,
            Next::Block(piece) => {
                let mut range = Vec::new();
                if let Some((first, length)) = piece.block.source() {
                    range = vec![0; length as usize];
                    old.read_exact_at(&mut range, first)?;
                }
                let made = piece.block.decode(&range, &piece.stored).map_err(anyhow::Error::msg)?;
                hash.update(&made);
                out.write_all(&made)?;
            }
            Next::Bytes => {
                if used == filled {
                    (filled, used) = (delta.read(&mut chunk)?, 0);
                    ensure!(filled > 0, "the delta ends early");
                }
                used += reader.push(&chunk[used..filled]);
            }
        }
    }
    Ok(Digest::from_bytes(hash.finish().as_ref().try_into().context("32 bytes")?))
}

/// Highest resident size so far.
fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn header(old: &Path, new: &Path) -> Result<Header> {
    // Hashed in pieces: a file in memory would be the peak that is measured.
    let digest = |path: &Path| -> Result<(Digest, u64)> {
        let (mut file, mut buffer) = (File::open(path)?, vec![0; CHUNK]);
        let (mut hash, mut size) = (ring::digest::Context::new(&ring::digest::SHA256), 0);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    size += n as u64;
                }
            }
        }
        Ok((Digest::from_bytes(hash.finish().as_ref().try_into().context("32 bytes")?), size))
    };
    let ((old, old_size), (new, new_size)) = (digest(old)?, digest(new)?);
    Ok(Header { old, new, old_size, new_size })
}

/// The model, or what became of it.
fn model(kind: Kind, step: f64, head_only: bool) -> Vec<u8> {
    let mut graph = Vec::new();
    for tensor in 0..TENSORS {
        let (mut weight, mut moved) = (Normal(tensor as u64 + 1), Normal(tensor as u64 + 100));
        let deviation = 0.01 * (tensor + 1) as f64;
        let from = if head_only && tensor + 1 == TENSORS { WEIGHTS * 2 / 3 } else { WEIGHTS };
        let raw: Vec<u8> = (0..WEIGHTS)
            .flat_map(|n| {
                let (value, change) = (weight.next() * deviation, moved.next() * deviation);
                let value = match head_only {
                    true if n >= from => change,
                    true => value,
                    false => value + step * change,
                };
                encode(kind, value, deviation)
            })
            .collect();
        let name = format!("layer.{tensor}.weight");
        let parts =
            [vec![0x08, 0x80, 0x80, 0x20, 0x10, kind as u8], field(8, name.as_bytes()), field(9, &raw)];
        graph.extend_from_slice(&field(5, &parts.concat()));
    }
    [vec![0x08, 8], field(7, &graph)].concat()
}

fn encode(kind: Kind, value: f64, deviation: f64) -> Vec<u8> {
    let bits = (value as f32).to_bits();
    match kind {
        Kind::Fp32 => bits.to_le_bytes().to_vec(),
        // To nearest, ties to even.
        Kind::Bf16 => (((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes().to_vec(),
        Kind::Int8 => vec![(value / (deviation * 4.0) * 127.0).round().clamp(-127.0, 127.0) as i8 as u8],
    }
}

/// One protobuf field with a length.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut left = payload.len();
    while left >= 0x80 {
        bytes.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.extend_from_slice(payload);
    bytes
}

/// Normal numbers, as sums of twelve uniform ones, from SplitMix64.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
