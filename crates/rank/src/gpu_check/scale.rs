//! How large the checks are: the paper's network on a GPU, toys on a CPU.

/// 1 GiB in bytes.
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Sizes of models, batches and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) small: bool,
    pub(crate) depth: u32,
    pub(crate) image_size: u32,
    /// Pictures a lane in training and benchmarks.
    pub(crate) images: u32,
    /// Threads that load pictures.
    pub(crate) loader_threads: u32,
    /// Generated pictures and their size.
    pub(crate) pictures: u64,
    pub(crate) picture_size: (u32, u32),
    /// Steps of the training check; a first few are not measured.
    pub(crate) steps: u64,
    pub(crate) unmeasured: u64,
    /// Pairs of turns of a benchmark, the steps of one, and those before the first.
    pub(crate) turns: usize,
    pub(crate) turn_steps: u32,
    pub(crate) warm_up: u32,
}

impl Scale {
    /// ResNet-50 at 224 pixels; the peer's whole graph in f32 decides how many pictures fit (about 0.6 GiB each).
    pub(crate) fn of_gpu(memory_bytes: f64) -> Self {
        let images = match memory_bytes / GIB {
            gib if gib > 70.0 => 64,
            gib if gib > 36.0 => 32,
            gib if gib > 20.0 => 16,
            _ => 8,
        };
        Self {
            small: false,
            depth: 50,
            image_size: 224,
            images,
            loader_threads: 16,
            pictures: 256,
            picture_size: (500, 375),
            steps: 40,
            unmeasured: 8,
            turns: 5,
            turn_steps: 5,
            warm_up: 5,
        }
    }

    pub(crate) const fn small() -> Self {
        Self {
            small: true,
            depth: 18,
            image_size: 32,
            images: 4,
            loader_threads: 2,
            pictures: 16,
            picture_size: (64, 48),
            steps: 4,
            unmeasured: 1,
            turns: 2,
            turn_steps: 1,
            warm_up: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_fit_the_card() {
        for (gib, images) in [(139.0, 64), (79.0, 64), (40.0, 32), (24.0, 16), (11.0, 8), (0.0, 8)] {
            assert_eq!(Scale::of_gpu(gib * GIB).images, images, "{gib} GiB");
        }
    }
}
