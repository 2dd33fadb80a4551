//! Whole-system scenarios with real processes on one machine.
