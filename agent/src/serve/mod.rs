//! The serving child: the one process of the agent that holds models.

pub mod control;
