//! Speed beside PyTorch eager: both programs are started, warmed up and take turns in the same minutes on the same GPU.

use super::Stage;
use super::finding::Finding;
use super::process::{self, Deadline, last_lines};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A comparison: what each program is told besides the sizes.
pub(super) struct Pair {
    pub(super) name: &'static str,
    ours: Vec<&'static str>,
    peer: Vec<&'static str>,
}

/// All of them; the first counts most. The peer computes the official graph, as the paper's program does.
pub(super) fn pairs() -> Vec<Pair> {
    vec![
        Pair {
            name: "bench: selective bf16 beside eager official bf16",
            ours: vec!["--compute", "selective", "--bf16"],
            peer: vec!["--bf16", "--channels-last"],
        },
        Pair {
            name: "bench: selective f32 beside eager official f32",
            ours: vec!["--compute", "selective"],
            peer: vec!["--channels-last"],
        },
    ]
}

/// Ours, peer, ours, peer; medians of both and of the pairs' ratios. Where there is no peer, ours alone.
pub(super) fn check(stage: &Stage, pair: &Pair, until: Deadline) -> Result<Vec<Finding>> {
    let absent = no_peer(stage);
    let mut ours = Program::start(our_command(stage, pair)?)?;
    let mut peer = if absent.is_none() { Some(Program::start(peer_command(stage, pair))?) } else { None };
    ours.answer(until).context("mcl-rank bench-step")?;
    // A peer that does not run here is no fault of ours: told, and measured without.
    let mut trouble = absent.map(|why| format!("no peer ({why})"));
    if let Some(Err(error)) = peer.as_mut().map(|p| p.answer(until)) {
        (peer, trouble) = (None, Some(format!("the peer does not run: {error:#}")));
    }
    let mut costs = (Vec::new(), Vec::new());
    let mut memory = (0.0, 0.0);
    for _ in 0..stage.scale.turns {
        let cost = ours.turn(until).context("mcl-rank bench-step")?;
        costs.0.push(figure(&cost, "wall_s")?);
        memory.0 = figure(&cost, "gpu_peak_bytes").or_else(|_| figure(&cost, "peak_bytes"))?;
        let Some(running) = &mut peer else { continue };
        match running.turn(until) {
            Ok(cost) => {
                costs.1.push(figure(&cost, "wall_s")?);
                memory.1 = figure(&cost, "peak_bytes")?;
            }
            Err(error) => (peer, trouble) = (None, Some(format!("the peer ended: {error:#}"))),
        }
    }
    Ok(vec![told(stage, pair, &costs, memory, trouble)])
}

fn told(
    stage: &Stage,
    pair: &Pair,
    (ours, peer): &(Vec<f64>, Vec<f64>),
    memory: (f64, f64),
    trouble: Option<String>,
) -> Finding {
    let step = median(ours.clone());
    let images = f64::from(stage.scale.images) / step;
    let size =
        format!("R{} {} px, {} pictures", stage.scale.depth, stage.scale.image_size, stage.scale.images);
    let mut detail =
        format!("{size}: {:.1} ms a step, {images:.0} images/s, {:.2} GiB", 1e3 * step, memory.0 / GIB);
    let mut finding =
        Finding::of(pair.name, step > 0.0, "").with("step_ms", 1e3 * step).with("images_per_s", images);
    finding = finding.with("peak_bytes", memory.0).with("images", f64::from(stage.scale.images));
    if peer.len() == ours.len() {
        let ratios: Vec<f64> = peer.iter().zip(ours).map(|(p, o)| p / o).collect();
        let (low, high) = ratios.iter().fold((f64::INFINITY, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
        let (theirs, ratio) = (median(peer.clone()), median(ratios));
        detail += &format!(
            "; PyTorch eager {:.1} ms, {:.2} GiB: {ratio:.2} times ours ({low:.2} to {high:.2})",
            1e3 * theirs,
            memory.1 / GIB
        );
        finding = finding.with("peer_step_ms", 1e3 * theirs).with("peer_peak_bytes", memory.1);
        finding = finding.with("ratio", ratio).with("ratio_least", low).with("ratio_most", high);
    }
    if let Some(trouble) = trouble {
        detail += &format!("; {trouble}");
    }
    finding.detail = detail;
    finding
}

/// 1 GiB in bytes.
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn figure(answer: &Value, name: &str) -> Result<f64> {
    answer.get(name).and_then(Value::as_f64).with_context(|| format!("no number `{name}` in {answer}"))
}

/// Sizes that both programs are told.
fn sizes(stage: &Stage) -> Vec<String> {
    let scale = stage.scale;
    let device = stage.devices.first().map_or("cpu", String::as_str);
    let of = |name: &str, value: &dyn std::fmt::Display| [format!("--{name}"), value.to_string()];
    [
        of("device", &device),
        of("depth", &scale.depth),
        of("image-size", &scale.image_size),
        of("images", &scale.images),
        of("warm-up", &scale.warm_up),
        of("steps", &scale.turn_steps),
    ]
    .concat()
}

fn our_command(stage: &Stage, pair: &Pair) -> Result<Command> {
    let mut command = process::own()?;
    command.arg("bench-step").args(sizes(stage)).args(&pair.ours).arg("--paced");
    Ok(command)
}

fn peer_command(stage: &Stage, pair: &Pair) -> Command {
    let mut command = python(stage);
    command.arg(&stage.arguments.peer).args(sizes(stage)).args(&pair.peer);
    command
}

/// It finds its own libtorch: ours in its library path could be another one.
fn python(stage: &Stage) -> Command {
    let mut command = Command::new(&stage.arguments.python);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// Why there is no peer to measure against.
fn no_peer(stage: &Stage) -> Option<String> {
    if !stage.arguments.peer.is_file() {
        return Some(format!("{} is not there", stage.arguments.peer.display()));
    }
    let name = stage.arguments.python.display();
    match python(stage).args(["-c", "import torch, torchvision"]).output() {
        Err(error) => Some(format!("{name}: {error}")),
        Ok(output) if !output.status.success() => {
            Some(format!("{name}: {}", last_lines(&String::from_utf8_lossy(&output.stderr))))
        }
        Ok(_) => None,
    }
}

/// A program that takes a turn for each line that it is given.
struct Program {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Program {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = input.zip(output).context("a program without pipes")?;
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let errors = process::collect(child.stderr.take());
        Ok(Self { child, input, answers, errors })
    }

    fn answer(&mut self, until: Deadline) -> Result<Value> {
        match self.answers.recv_timeout(until.left()) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("it said `{line}`")),
            Err(_) if until.left() > Duration::ZERO => {
                let status = self.child.wait()?;
                let said = self.errors.take().and_then(|t| t.join().ok()).unwrap_or_default();
                bail!("{status}: {}", last_lines(&said))
            }
            Err(_) => bail!("no answer in time"),
        }
    }

    fn turn(&mut self, until: Deadline) -> Result<Value> {
        self.input.write_all(b"go\n").and_then(|()| self.input.flush()).context("it takes no more turns")?;
        self.answer(until)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
