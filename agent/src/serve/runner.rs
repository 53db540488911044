//! Runs a bundle's model for one request, and measures what was asked and answered. Two threads do so: the model's own,
//! and the one that serves all connections, for models so quick that a hand-over would cost more ([`Pace`]).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plimsoll_protocol::drift::Quality;
use plimsoll_runtime::features::Featurizer;
use plimsoll_runtime::heap;
use plimsoll_runtime::{Model, RuntimeError, Tensor, ValueCheck};

use super::account::Account;
use super::drift::Rows;
use super::hosted::{OnFault, lock};
use super::pace::{Pace, Shapes, shapes_of};
use super::shadow::Tap;

/// What runs and measures a bundle.
pub struct Runner {
    /// `None` when an engine elsewhere runs it: then there is only something to measure.
    pub model: Option<Arc<Model>>,
    /// Its input policy.
    pub values: ValueCheck,
    /// What a baseline is measured with, when the bundle carries one.
    pub featurizer: Option<Featurizer>,
    /// What is counted.
    pub account: Account,
    /// Told when the model is broken beyond one request.
    pub on_fault: OnFault,
    /// What its runs take.
    pub pace: Mutex<Pace>,
}

/// What a model answered, or why not.
pub type Outcome = Result<Arc<Vec<Tensor>>, RuntimeError>;

/// A run that is to be measured, once its answer is on its way.
pub struct Seen {
    shapes: Shapes,
    inputs: Vec<Tensor>,
    outputs: Arc<Vec<Tensor>>,
    tap: Option<Arc<Tap>>,
    took: Duration,
}

impl Runner {
    /// Runs the model. `waited`: in the queue. What comes with the answer goes to [`Self::measure_run`].
    pub fn run(&self, inputs: Vec<Tensor>, waited: Duration) -> (Outcome, Option<Seen>) {
        let rows = inputs.first().map_or(1, Tensor::rows);
        let tap = self.account.tap().filter(|tap| tap.wants(rows));
        let shapes = shapes_of(&inputs);
        let asked = (self.featurizer.is_some() || tap.is_some()).then(|| inputs.clone());
        let started = Instant::now();
        let lost = || RuntimeError::Run("this process holds no model of it".into()); // never asked: see `Hosted::infer`
        let (outcome, memory) =
            heap::taken(|| self.model.as_ref().ok_or_else(lost).and_then(|model| model.infer(inputs)));
        let outcome = outcome.map(Arc::new);
        let took = started.elapsed();
        self.account.ran(rows, waited, took);
        if let Err(why) = self.account.run_took(memory) {
            (self.on_fault)(why);
        }
        if let Err(RuntimeError::Panicked { .. }) = &outcome {
            let why = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            (self.on_fault)(why);
        }
        let Some((inputs, outputs)) = asked.zip(outcome.as_ref().ok().cloned()) else {
            if outcome.is_ok() {
                lock(&self.pace).note(shapes, took); // a failure says nothing of what an answer takes
            }
            return (outcome, None);
        };
        (outcome, Some(Seen { shapes, inputs, outputs, tap, took }))
    }

    /// Folds a run into the open window, and offers it to a shadow.
    pub fn measure_run(&self, seen: Seen) {
        let Seen { shapes, inputs, outputs, tap, took } = seen;
        let started = Instant::now();
        self.measure(&inputs, Some(&outputs));
        lock(&self.pace).note(shapes, took + started.elapsed());
        if let Some(tap) = tap {
            let rows = inputs.first().map_or(1, Tensor::rows);
            tap.offer(inputs, rows, outputs, took);
        }
    }

    /// Folds a request into the open window, with its answer or without one. Without a window nothing is read.
    pub fn measure(&self, inputs: &[Tensor], outputs: Option<&[Tensor]>) {
        let Some(featurizer) = &self.featurizer else { return };
        if !self.account.measures() {
            return;
        }
        let rows = Rows::of(featurizer, inputs, outputs.unwrap_or_default());
        let values = self.values.count(inputs);
        self.account.observe(&rows, outputs.is_some(), &Quality { values, ..Quality::default() });
    }
}
