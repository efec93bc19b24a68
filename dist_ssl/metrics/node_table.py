"""The table of the metrics of a node, which its agent exports; those of a run are in `table`.

Counters start from 0 with every attempt, and are shown as rates (`sum`). The series have no labels of their own but
`place` and `source`; a node's target has the labels `run`, `node` (the number of the node in the run), `instance` (the
name of the machine) and `job` (NODE_JOB).
"""

from dist_ssl.metrics.table_row import Metric

NODE_JOB = "dist_ssl_node"
"""Label `job` of the targets of nodes, which keeps `up` of a node apart from `up` of a run."""

NODE_METRICS: tuple[Metric, ...] = (
    Metric("gpus", "node_gpus", "GPUs of the node that the run uses.", "GPUs", "last"),
    Metric("gpu_use", "node_gpu_use_ratio", "Share of the time in which a GPU computes, mean.", "GPU use", "last"),
    Metric(
        "least_gpu_use",
        "node_least_gpu_use_ratio",
        "Share of the time in which the node's least used GPU computes.",
        "GPU use",
        "last",
    ),
    Metric(
        "gpu_memory",
        "node_gpu_memory_ratio",
        "Largest share of a GPU's memory that is taken, by any process.",
        "GPU memory of the node",
        "last",
    ),
    Metric(
        "processor_use",
        "node_processor_use_ratio",
        "Share of the time in which the cores of the node compute.",
        "Processor use",
        "last",
    ),
    Metric("memory_used", "node_used_memory_bytes", "Host memory that is taken.", "Host memory", "last"),
    Metric("memory_size", "node_memory_bytes", "Host memory of the machine.", "Host memory", "last"),
    Metric(
        "workers_memory",
        "node_workers_memory_bytes",
        "Resident memory of the run's processes on the node.",
        "Host memory",
        "last",
    ),
    Metric("workers", "node_workers", "Processes of the run on the node that are alive.", "Processes", "last"),
    Metric(
        "read_bytes",
        "node_read_bytes_total",
        "Bytes that the run's processes have read from disks.",
        "Bytes read from disks",
        "sum",
    ),
    Metric(
        "free_space",
        "node_free_bytes",
        "Space left for the run folder, the node cache and shared memory.",
        "Space left",
        "last",
        label="place",
        values=("run", "cache", "shared memory"),
    ),
    Metric(
        "energy",
        "node_energy_joules_total",
        "Energy since the attempt's start: its GPUs, and all processors of the node.",
        "Energy",
        "sum",
        label="source",
        values=("gpus", "processors"),
    ),
)
