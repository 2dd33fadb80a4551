//! A job for as many ranks as there are, over pictures that cost next to nothing.
//!
//! The pictures are one JPEG in every tar shard; a shard's side index names it many times over. Nobody decodes
//! them here, but listing, digest, plan and ledger are those of a dataset of this size.

use crate::BenchError;
use mcl_data::dataset::{IndexEntry, TarIndex, side_file};
use mcl_data::generate::{self, GenerateSpec};
use mcl_types::{Digest, Seed};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// Most lanes that a job may have; ranks beyond are spares.
const MOST_LANES: u32 = 65_536;
const IMAGES_PER_LANE: u32 = 2;
/// Steps of an epoch where the pictures suffice: an epoch's grants, one a rank, are a load of their own.
const STEPS_AN_EPOCH: u64 = 16;
/// Bounds what the coordinator needs to list them, which would blur what agents cost.
const MOST_PICTURES: u64 = 1 << 18;
const SHARD: u64 = 4096;
/// Silence after which an agent is lost, unless heartbeats are rarer: the default of a job.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Heartbeats within which one must arrive.
const HEARTBEATS: u32 = 4;
/// As good as for ever.
const STEPS: u64 = 1_000_000_000;

/// Lanes of a job that gives each of `ranks` one, where it may.
pub(crate) fn lanes(ranks: u32) -> u32 {
    ranks.clamp(1, MOST_LANES)
}

/// Writes the pictures into `folder` and gives the job file: one generation of all ranks or none.
pub(crate) fn make(
    folder: &Path,
    agents: u32,
    ranks: u32,
    interval: Option<Duration>,
) -> Result<String, BenchError> {
    let lanes = lanes(ranks);
    write_pictures(folder, pictures(lanes))?;
    let lost_after = interval.map_or(LOST_AFTER, |i| LOST_AFTER.max(i * HEARTBEATS));
    Ok(format!(
        "[data]\nsource = {:?}\n\n[batch]\nlanes = {lanes}\nimages_per_lane = {IMAGES_PER_LANE}\n\n\
         [train]\nsteps = {STEPS}\n\n\
         [elastic]\nmin_workers = {}\nmax_lanes_per_rank = 1\nlost_after = \"{}ms\"\n\n\
         [checkpoint]\nevery_steps = {STEPS}\n",
        folder.display().to_string(),
        agents.min(lanes),
        lost_after.as_millis(),
    ))
}

fn pictures(lanes: u32) -> u64 {
    let step = u64::from(lanes) * u64::from(IMAGES_PER_LANE);
    step * (MOST_PICTURES / step).clamp(1, STEPS_AN_EPOCH)
}

fn write_pictures(folder: &Path, pictures: u64) -> Result<(), BenchError> {
    let told = |e: &dyn std::fmt::Display| BenchError::Pictures(e.to_string());
    let spec = GenerateSpec::objects(1, Seed::new(1));
    let drawn = generate::draw(&spec, 0).map_err(|e| told(&e))?;
    let picture = generate::encode(&drawn.picture, spec.format).map_err(|e| told(&e))?;
    fs::create_dir_all(folder).map_err(BenchError::file("create", folder))?;
    for (shard, first) in (0_u64..).zip((0..pictures).step_by(usize::try_from(SHARD).unwrap_or(1))) {
        let path = folder.join(format!("shard-{shard:06}.tar"));
        write_tar(&path, &picture).map_err(BenchError::file("write", &path))?;
        let index = index(&path, &picture, first..(first + SHARD).min(pictures))?;
        let side = side_file(&path);
        let text = serde_json::to_vec(&index).map_err(|e| told(&e))?;
        fs::write(&side, text).map_err(BenchError::file("write", &side))?;
    }
    Ok(())
}

fn write_tar(path: &Path, picture: &[u8]) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(File::create(path)?);
    let mut header = tar::Header::new_gnu();
    header.set_size(picture.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "picture.jpg", picture)?;
    tar.into_inner().map(drop)
}

fn index(path: &Path, picture: &[u8], names: std::ops::Range<u64>) -> Result<TarIndex, BenchError> {
    let length = picture.len() as u64;
    let tar_bytes = fs::metadata(path).map_err(BenchError::file("read", path))?.len();
    let entry = |name| IndexEntry {
        key: format!("picture-{name:07}"),
        extension: "jpg".to_owned(),
        // Behind the one header.
        offset: 512,
        length,
        label: None,
        blake3: Some(Digest::of(picture)),
    };
    Ok(TarIndex { version: 1, tar_bytes, kind: None, samples: names.map(entry).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_config::Job;

    #[test]
    fn the_job_has_a_lane_a_rank_and_its_pictures_open() {
        let folder = tempfile::tempdir().unwrap();
        let text = make(folder.path(), 1000, 3000, None).unwrap();
        let job = Job::parse(&text, "bench").unwrap();
        assert_eq!((job.batch().lanes, job.elastic().min_workers), (3000, 1000));
        assert_eq!(job.elastic().lost_after, LOST_AFTER);
        let dataset = mcl_job::open_dataset(&job).unwrap();
        let plan = mcl_job::plan_spec(&job, &dataset);
        assert_eq!((plan.steps_per_epoch().unwrap(), plan.shards.len()), (16, 24));
        assert_eq!(
            dataset.read(mcl_types::SampleIndex::new(70_000)).unwrap().get(..2),
            Some(&[0xff, 0xd8][..])
        );
    }

    #[test]
    fn pictures_are_bounded_and_rare_heartbeats_are_waited_for() {
        assert_eq!((pictures(2), pictures(65_536), pictures(16_000)), (64, 262_144, 256_000));
        assert_eq!((lanes(0), lanes(80_000)), (1, 65_536));
        let folder = tempfile::tempdir().unwrap();
        let text = make(folder.path(), 2, 2, Some(Duration::from_secs(5))).unwrap();
        assert_eq!(Job::parse(&text, "bench").unwrap().elastic().lost_after, Duration::from_secs(20));
    }
}
