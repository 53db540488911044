//! The control channel over standard input and output. Two threads, because reading a pipe blocks; neither keeps the
//! process alive.

use std::io::{self, BufRead, Read, Write};

use tokio::sync::mpsc;

use super::child::Said;
use super::control::{Answer, MAX_LINE, Order};

/// Orders that wait for the child's loop, and answers that wait for the pipe: the driver's own queue has 64.
const QUEUE: usize = 64;

/// Reads orders until the end of file, which means that the driver is gone.
pub fn orders() -> io::Result<mpsc::Receiver<Said>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("control-in".into()).spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(said) = read(&mut input) {
            if sender.blocking_send(said).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Writes answers, a line each. The handle resolves when all were written and the senders are gone.
pub fn answers() -> io::Result<(mpsc::Sender<Answer>, std::thread::JoinHandle<()>)> {
    let (sender, mut receiver) = mpsc::channel::<Answer>(QUEUE);
    let thread = std::thread::Builder::new().name("control-out".into()).spawn(move || {
        let mut output = io::stdout().lock();
        while let Some(answer) = receiver.blocking_recv() {
            let mut line = serde_json::to_vec(&answer).unwrap_or_default(); // no map with non-text keys: cannot fail
            line.push(b'\n');
            if output.write_all(&line).and_then(|()| output.flush()).is_err() {
                return; // the driver is gone; standard input says so too
            }
        }
    })?;
    Ok((sender, thread))
}

/// One line; `None` at the end of file. A line that is too long is skipped to its end.
fn read(input: &mut impl BufRead) -> Option<Said> {
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).ok()?;
    if read == 0 {
        return None;
    }
    if line.len() > MAX_LINE {
        while line.last() != Some(&b'\n') {
            line.clear();
            if input.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
        }
        return Some(Said::Garbage(format!("a line is longer than {MAX_LINE} bytes")));
    }
    Some(serde_json::from_slice::<Order>(&line).map_or_else(|e| Said::Garbage(e.to_string()), Said::Order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_told_and_the_next_order_still_heard() {
        let mut input = b"nonsense\n".to_vec();
        input.extend(vec![b'x'; 3 * MAX_LINE]);
        input.extend(b"\n{\"order\":\"stats\"}\n{\"order\":\"dance\"}\n{\"order\":\"drain\"}");
        let mut input = io::Cursor::new(input);
        let said: Vec<Said> = std::iter::from_fn(|| read(&mut input)).collect();
        assert!(
            matches!(
                &said[..],
                [
                    Said::Garbage(_),
                    Said::Garbage(long),
                    Said::Order(Order::Stats),
                    Said::Garbage(_),
                    Said::Order(Order::Drain)
                ] if long.contains("longer")
            ),
            "{said:?}"
        );
    }
}
