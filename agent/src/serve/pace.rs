//! Which requests are answered where they were read, without a thread in between.
//!
//! Handing a request to the model's thread and its answer back costs two wake-ups of sleeping threads, where a
//! perceptron computes for 4 us: one caller got about a tenth fewer answers. So a model that is known to be quick is
//! run at once by the thread that serves all connections. "Known" is per shape: a graph without loops does the same
//! work for the same shapes, and other shapes of the same number of elements may take the square of the time. Whatever
//! has not been measured, or was slow when it was, goes to the model's own thread and is measured there.
//!
//! Under load it is the other way round: four callers got 34,000 answers a second from two threads on two cores, and
//! 24,000 from one. So a request that follows the last answer too soon is handed over too.
//!
//! Should a model that was quick a thousand times never end after all, the process falls silent and its driver replaces
//! it ([`crate::driver::child::SILENCE`]).

use std::time::{Duration, Instant};

use plimsoll_runtime::Tensor;

/// The longest run that other connections wait for: about what they would lose to the hand-over.
const QUICK: Duration = Duration::from_micros(100);
/// Shapes whose time is remembered: one row, the application's batch, and two that come and go.
const SHAPES: usize = 4;
/// A run that was interrupted looks slow. Each later run of the shape takes an eighth off the slowest, so that one
/// interruption of 10 ms is forgotten after 35 runs.
const FORGET: u32 = 8;

/// A request that comes so soon after the last answer did not wait for it: several callers are at work. A bare exchange
/// over loopback took 54 us (tests/bench/endpoint, `loopback`), so a caller that reads its answer is not back sooner.
const CROWDED: Duration = Duration::from_micros(50);

/// Of all inputs of a request.
pub type Shapes = Vec<Vec<usize>>;

/// How long runs of a bundle take, by the shapes of what was asked.
#[derive(Debug)]
pub struct Pace {
    /// Of the machine.
    cores: usize,
    /// The one used least lately first.
    known: Vec<Known>,
    /// When the last answer was ready.
    answered: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    shapes: Shapes,
    /// Close to the slowest of late.
    takes: Duration,
}

impl Pace {
    /// Nothing is known yet.
    pub const fn new(cores: usize) -> Self {
        Self { cores, known: Vec::new(), answered: None }
    }

    /// Whether a run for such inputs, asked for at `now`, is worth no hand-over.
    pub fn is_for_here(&self, inputs: &[Tensor], now: Instant) -> bool {
        let soon = |at| now.saturating_duration_since(at) < CROWDED;
        let crowded = self.cores > 1 && self.answered.is_some_and(soon);
        !crowded && self.is_quick(inputs)
    }

    /// Notes that an answer is ready.
    pub fn answered(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    fn is_quick(&self, inputs: &[Tensor]) -> bool {
        self.known.iter().any(|known| known.takes <= QUICK && known.fits(inputs))
    }

    /// Notes what a run for inputs of such shapes took, with what was measured of it.
    pub fn note(&mut self, shapes: Shapes, took: Duration) {
        match self.known.iter().position(|known| known.shapes == shapes) {
            Some(at) => {
                let known = &mut self.known[at];
                known.takes = took.max(known.takes - known.takes / FORGET);
                self.known[at..].rotate_left(1);
            }
            None => {
                if self.known.len() == SHAPES {
                    self.known.remove(0);
                }
                self.known.push(Known { shapes, takes: took });
            }
        }
    }
}

/// Shapes of inputs, for [`Pace::note`] after the inputs are gone.
pub fn shapes_of(inputs: &[Tensor]) -> Shapes {
    inputs.iter().map(|tensor| tensor.shape().to_vec()).collect()
}

impl Known {
    fn fits(&self, inputs: &[Tensor]) -> bool {
        self.shapes.len() == inputs.len()
            && self.shapes.iter().zip(inputs).all(|(shape, t)| shape == t.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(10);
    const FAST: Duration = Duration::from_micros(4);

    fn input(shape: &[usize]) -> Vec<Tensor> {
        let data = plimsoll_runtime::Data::Fp32(vec![0.0; shape.iter().product()]);
        vec![Tensor::new(shape.to_vec(), data).unwrap()]
    }

    #[test]
    fn only_what_was_seen_to_be_quick_in_this_shape_is_quick() {
        let mut pace = Pace::new(2);
        assert!(!pace.is_quick(&input(&[1, 6])));
        pace.note(vec![vec![1, 6]], FAST);
        assert!(pace.is_quick(&input(&[1, 6])));
        for other in [&[6, 1][..], &[1, 7], &[6]] {
            assert!(!pace.is_quick(&input(other)), "{other:?}");
        }
        assert!(!pace.is_quick(&[input(&[1, 6]), input(&[1, 6])].concat()));
    }

    #[test]
    fn requests_that_queue_up_are_handed_over() {
        let mut pace = Pace::new(2);
        pace.note(vec![vec![1]], FAST);
        let start = Instant::now();
        assert!(pace.is_for_here(&input(&[1]), start), "nothing was answered yet");
        pace.answered(start);
        assert!(!pace.is_for_here(&input(&[1]), start + CROWDED / 2));
        assert!(pace.is_for_here(&input(&[1]), start + CROWDED));
        pace.cores = 1;
        assert!(pace.is_for_here(&input(&[1]), start), "there is no other core to hand it to");
    }

    #[test]
    fn a_slow_run_sends_the_shape_back_until_it_was_quick_for_a_while() {
        let mut pace = Pace::new(2);
        pace.note(vec![vec![1]], FAST);
        pace.note(vec![vec![1]], SLOW);
        let mut again = 0;
        while !pace.is_quick(&input(&[1])) {
            pace.note(vec![vec![1]], FAST);
            again += 1;
        }
        assert!((30..50).contains(&again), "{again}");
    }

    #[test]
    fn few_shapes_are_remembered_and_those_in_use_stay() {
        let mut pace = Pace::new(2);
        for rows in 1..20 {
            pace.note(vec![vec![rows]], FAST);
            pace.note(vec![vec![1]], FAST);
        }
        assert!(pace.is_quick(&input(&[1])) && pace.is_quick(&input(&[19])) && !pace.is_quick(&input(&[2])));
        assert_eq!(pace.known.len(), SHAPES);
    }
}
