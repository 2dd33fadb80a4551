//! Writes the good inputs of every decoder, a folder each, for fuzzers to begin with: `seeds FOLDER`.

use mcl_decoder_tests::TARGETS;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("expected a folder to write to");
        return ExitCode::FAILURE;
    };
    for target in TARGETS {
        let own = folder.join(target.name);
        let written = std::fs::create_dir_all(&own).and_then(|()| {
            (target.seeds)()
                .iter()
                .enumerate()
                .try_for_each(|(n, s)| std::fs::write(own.join(format!("seed-{n}")), s))
        });
        if let Err(error) = written {
            eprintln!("{}: {error}", own.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
