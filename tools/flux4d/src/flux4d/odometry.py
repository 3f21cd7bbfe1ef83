"""Poses from the sweeps alone, by KISS-ICP (Vizzo et al., RA-L 2023), where a log has none."""

import importlib

import numpy as np
from recon4d import InputError
from recon4d.cli import progress

from flux4d.logs import Log, poses_in_sweep

REACH = 100.0  # metres, KISS-ICP's own default
NEAR = 3.0  # metres; the car itself is seen nearer than that, and stands still
VOXEL = 0.5  # metres; with its default, a hundredth of the reach, slow traffic comes out 8 cm a frame unsteady


def kiss_icp_poses(log: Log, deskew: bool = True) -> np.ndarray:
    """(N, 4, 4) LiDAR to world of a log's sweeps, the first one's frame being the world.

    Args:
        deskew: whether the points of a sweep with times are from moments of their own.

    Raises InputError when kiss-icp is not installed.
    """
    try:
        pipeline = importlib.import_module("kiss_icp.kiss_icp")
        config = importlib.import_module("kiss_icp.config").load_config(None)
    except ImportError as error:
        raise InputError(
            "--poses kiss-icp needs the package kiss-icp; install flux4d[odometry], or give a file of poses"
        ) from error
    config.data.max_range, config.data.min_range = REACH, NEAR
    config.mapping.voxel_size = VOXEL
    config.registration.max_num_threads = 1  # sums in one order: the same poses on every machine

    # Its own deskewing takes the motion of the sweep before, which at the start is none: the first sweeps stay skewed,
    # the map with them, and the speed swings for a second. So the sweeps are registered as they are, and then again,
    # deskewed by what that gave.
    rolls = deskew and not log.compensated and log.read(0).offsets is not None
    found = np.tile(np.eye(4), (len(log.sweeps), 1, 1))
    for deskewed in (False, True) if rolls else (False,):
        odometry, poses = pipeline.KissICP(config=config), []
        for i in progress(range(len(log.sweeps)), "poses", len(log.sweeps)):
            sweep = log.read(i)
            xyz = sweep.xyz
            if deskewed and sweep.offsets is not None:
                at = np.linalg.inv(found[i]) @ poses_in_sweep(log.times, found, i, sweep.offsets)
                xyz = np.einsum("nij,nj->ni", at[:, :3, :3], xyz) + at[:, :3, 3]
            odometry.register_frame(xyz, np.zeros(0))
            poses.append(odometry.last_pose.copy())
        found = np.stack(poses)
        if not np.isfinite(found).all():
            raise InputError(f"--poses kiss-icp found no poses for {log.sweeps[0].parent}; give a file of poses")
    return found
