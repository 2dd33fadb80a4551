//! A fold over what happens, into spans.

use mcl_history::{Happening, Row, Run, What};
use opentelemetry::trace::{Span, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use std::time::{Duration, SystemTime};

/// Spans that are open: of the run, and of its generation.
pub(crate) struct Spans<T: Tracer> {
    tracer: T,
    run: Option<Open<T::Span>>,
    generation: Option<Generation<T::Span>>,
    /// When something happened last.
    last: f64,
}

struct Generation<S> {
    number: u64,
    open: Open<S>,
    /// It ended then; why may still be said.
    ended: Option<f64>,
}

struct Open<S> {
    span: S,
    context: Context,
}

impl<S: Span> Open<S> {
    fn new(span: S) -> Self {
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        Self { span, context }
    }
}

impl<T: Tracer> Spans<T> {
    pub(crate) fn new(tracer: T) -> Self {
        Self { tracer, run: None, generation: None, last: 0.0 }
    }

    pub(crate) fn take(&mut self, happening: &Happening) {
        let time = happening.time;
        self.last = self.last.max(time);
        match &happening.what {
            What::Began { run, committed, .. } => self.begin(run, *committed, time),
            What::Committed(row) => self.step(row),
            What::RolledBack { to } => self.event("rolled back", time, *to),
            What::Formed { generation, workers, ranks } => self.form(*generation, (*workers, *ranks), time),
            What::Continued { generation, workers, ranks, .. } => {
                self.form(*generation, (*workers, *ranks), time);
            }
            What::Ended { generation, cause } => self.end_generation(*generation, cause.as_deref(), time),
            What::Checkpoint { step } => self.event("checkpoint", time, *step),
            What::Evaluated { evaluation, .. } => self.event("evaluated", time, evaluation.step),
            What::Draining(_) | What::CheckpointsFound(_) => {}
        }
    }

    fn begin(&mut self, run: &Run, committed: u64, time: f64) {
        self.close(time);
        let attributes = vec![
            KeyValue::new("mcl.run", run.name.clone()),
            KeyValue::new("mcl.lanes", i64::from(run.lanes)),
            KeyValue::new("mcl.images_per_lane", i64::from(run.images_per_lane)),
            KeyValue::new("mcl.committed_steps", whole(committed)),
        ];
        self.run = Some(self.open("run", &Context::new(), (time, attributes)));
    }

    fn form(&mut self, generation: u64, (workers, ranks): (u32, u32), time: f64) {
        self.close_generation(None, time);
        let attributes = vec![
            KeyValue::new("mcl.generation", whole(generation)),
            KeyValue::new("mcl.workers", i64::from(workers)),
            KeyValue::new("mcl.ranks", i64::from(ranks)),
        ];
        let within = self.run.as_ref().map_or_else(Context::new, |run| run.context.clone());
        let open = self.open("generation", &within, (time, attributes));
        self.generation = Some(Generation { number: generation, open, ended: None });
    }

    fn step(&mut self, row: &Row) {
        let generation = self.generation.as_ref().filter(|g| g.number == row.generation).map(|g| &g.open);
        let within = generation.or(self.run.as_ref()).map_or_else(Context::new, |open| open.context.clone());
        let mut attributes = vec![
            KeyValue::new("mcl.step", whole(row.step)),
            KeyValue::new("mcl.epoch", whole(row.epoch)),
            KeyValue::new("mcl.images_per_s", row.images_per_s),
            KeyValue::new("mcl.data_wait_s", row.data_wait_s),
            KeyValue::new("mcl.skipped", row.skipped),
        ];
        attributes.extend(row.loss.map(|loss| KeyValue::new("mcl.loss", loss)));
        let mut span = self.open("step", &within, (row.time - row.step_s, attributes)).span;
        span.end_with_timestamp(at(row.time));
    }

    fn event(&mut self, name: &'static str, time: f64, step: u64) {
        if let Some(run) = &mut self.run {
            run.span.add_event_with_timestamp(name, at(time), vec![KeyValue::new("mcl.step", whole(step))]);
        }
    }

    /// Of one that failed two things are told: that it ended, then why.
    fn end_generation(&mut self, generation: u64, cause: Option<&str>, time: f64) {
        match self.generation.as_mut().filter(|g| g.number == generation) {
            Some(known) if cause.is_none() => known.ended = Some(time),
            Some(_) => self.close_generation(cause, time),
            None => {}
        }
    }

    fn close_generation(&mut self, cause: Option<&str>, time: f64) {
        if let Some(Generation { open: mut last, ended, .. }) = self.generation.take() {
            if let Some(cause) = cause {
                last.span.set_status(Status::error(cause.to_owned()));
            }
            last.span.end_with_timestamp(at(ended.unwrap_or(time)));
        }
    }

    fn close(&mut self, time: f64) {
        self.close_generation(None, time);
        if let Some(mut run) = self.run.take() {
            run.span.end_with_timestamp(at(time));
        }
    }

    fn open(
        &self,
        name: &'static str,
        within: &Context,
        (time, attributes): (f64, Vec<KeyValue>),
    ) -> Open<T::Span> {
        let builder = self.tracer.span_builder(name).with_start_time(at(time)).with_attributes(attributes);
        Open::new(self.tracer.build_with_context(builder, within))
    }
}

impl<T: Tracer> Drop for Spans<T> {
    fn drop(&mut self) {
        self.close(self.last);
    }
}

fn at(seconds: f64) -> SystemTime {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn whole(number: u64) -> Value {
    Value::I64(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanId, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};

    fn row(step: u64, generation: u64, time: f64) -> Happening {
        let row = Row {
            step,
            epoch: 0,
            generation,
            loss: None,
            loss_per_level: Vec::new(),
            lr: 0.1,
            momentum: 0.9,
            grad_norm: None,
            images_per_s: 10.0,
            workers: 1,
            data_wait_s: 0.0,
            step_s: 0.25,
            skipped: false,
            time,
        };
        Happening { time, what: What::Committed(Box::new(row)) }
    }

    fn happened(all: impl IntoIterator<Item = Happening>) -> Vec<SpanData> {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let mut spans = Spans::new(provider.tracer("test"));
        all.into_iter().for_each(|happening| spans.take(&happening));
        drop(spans);
        exporter.get_finished_spans().unwrap()
    }

    fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
        spans.iter().filter(|s| s.name == name).collect()
    }

    #[test]
    fn steps_lie_in_their_generation_and_generations_in_the_run() {
        let when = |time, what| Happening { time, what };
        let run = Box::new(Run { name: "first".to_owned(), lanes: 2, ..Run::default() });
        let cause = "rank 1 ended with signal 9".to_owned();
        let spans = happened([
            when(1.0, What::Began { run, metrics: "m".into(), committed: 0, checkpoint: None }),
            when(2.0, What::Formed { generation: 1, workers: 1, ranks: 2 }),
            row(0, 1, 3.0),
            when(3.5, What::Checkpoint { step: 1 }),
            when(4.0, What::Ended { generation: 1, cause: None }),
            when(4.5, What::Ended { generation: 1, cause: Some(cause.clone()) }),
            when(5.0, What::Formed { generation: 2, workers: 1, ranks: 1 }),
            row(1, 2, 6.0),
        ]);
        let [run] = named(&spans, "run")[..] else { panic!("{spans:?}") };
        assert_eq!((run.parent_span_id, run.end_time), (SpanId::INVALID, at(6.0)));
        assert_eq!(run.events.events[0].name, "checkpoint");
        let [first, second] = named(&spans, "generation")[..] else { panic!("{spans:?}") };
        assert_eq!((&first.status, &second.status), (&Status::error(cause), &Status::Unset));
        assert_eq!((first.start_time, first.end_time), (at(2.0), at(4.0)));
        let [one, two] = named(&spans, "step")[..] else { panic!("{spans:?}") };
        assert_eq!((one.start_time, one.end_time), (at(2.75), at(3.0)));
        let parents = [first, second, one, two].map(|s| s.parent_span_id);
        let ids = [run, run, first, second].map(|s| s.span_context.span_id());
        assert_eq!(parents, ids);
        assert!(spans.iter().all(|s| s.span_context.trace_id() == run.span_context.trace_id()));
        let step = KeyValue::new("mcl.step", 1_i64);
        assert!(two.attributes.contains(&step) && !one.attributes.contains(&step));
    }

    #[test]
    fn another_run_is_another_trace_and_times_that_are_none_do_no_harm() {
        let began = |name: &str, time| {
            let run = Box::new(Run { name: name.to_owned(), ..Run::default() });
            Happening { time, what: What::Began { run, metrics: "m".into(), committed: 0, checkpoint: None } }
        };
        let spans =
            happened([began("a", f64::NAN), row(0, 7, f64::INFINITY), row(1, 7, 1e300), began("b", 2.0)]);
        let [a, b] = named(&spans, "run")[..] else { panic!("{spans:?}") };
        assert_ne!(a.span_context.trace_id(), b.span_context.trace_id());
        assert_eq!(named(&spans, "step")[0].parent_span_id, a.span_context.span_id());
    }
}
