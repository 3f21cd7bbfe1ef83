"""A drawn street of `flux4d synth` as Waymo has it: parquet files of range images, poses, pictures and boxes."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from flux4d import rigs
from log_writers import CITY, LIDAR, Drawn, moved
from scipy.spatial.transform import Rotation

WAYMO = {"Car": 1, "Pedestrian": 2, "Bicycle": 4}
LENS = (0.12, -0.05, 0.002, -0.001, 0.01)  # k1 k2 p1 p2 k3 of a camera of Waymo


def _range_image(log: Drawn, i: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The range image (64, columns, 4) of the turning LiDAR, and the vehicle's poses (64, columns, 6) at its pixels."""
    beams = rigs.PANDASET.elevations()
    image = np.zeros((len(beams), columns, 4), np.float32)
    image[..., 0] = -1
    poses = np.zeros((len(beams), columns, 6), np.float32)
    found, level = log.points[i], LIDAR.copy()
    level[:3, :3] = np.eye(3)
    for time in np.unique(found["t"][found["d"] == 0]):
        own = (found["t"] == time) & (found["d"] == 0)
        vehicle = log.vehicle(i, time - log.times[i])
        local = moved(found["xyz"][own], np.linalg.inv(vehicle @ level) @ CITY)
        distance = np.linalg.norm(local, axis=1)
        row = np.abs(np.arcsin(local[:, 2] / distance)[:, None] - beams).argmin(1)
        clockwise = (np.pi - np.arctan2(local[:, 1], local[:, 0])) / (2 * np.pi)
        column = np.floor(clockwise * columns).astype(int) % columns
        image[len(beams) - 1 - row, column, 0] = distance
        image[len(beams) - 1 - row, column, 1] = np.arctanh(np.minimum(found["i"][own], 254) / 255)
        yaw, pitch, roll = Rotation.from_matrix(vehicle[:3, :3]).as_euler("ZYX")
        poses[:, np.unique(column)] = [roll, pitch, yaw, *vehicle[:3, 3]]
    return image, poses


def write_waymo(root: Path, log: Drawn, name: str, columns: int, bent: bool = True) -> Path:
    """A segment. Its side camera has a lens that bends; its pictures' poses are those of 30 ms before."""
    key = "key.segment_context_name"
    micros = [round((time - 0.05) * 1e6) for time in log.times]
    frames = range(len(micros))

    def put(part, component, columns, **types):
        fields = {}
        for title, column in columns.items():
            full = title if title.startswith("key.") else f"[{component}].{title}"
            fields[full] = pa.array(column, types.get(title.split(".")[-1]))
        table = pa.table({key: [name] * len(column), **fields})
        (root / part).mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, str(root / part / f"{name}.parquet"))

    stamp = "key.frame_timestamp_micros"
    matrix = pa.list_(pa.float64(), 16)
    poses = [log.vehicle(i).ravel().tolist() for i in frames]
    put(
        "vehicle_pose", "VehiclePoseComponent", {stamp: micros, "world_from_vehicle.transform": poses}, transform=matrix
    )
    to_waymo = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    cameras = {1: "front_camera", 2: "front_left_camera"}
    lens = {1: (0.0,) * 5, 2: LENS if bent else (0.0,) * 5}
    K = [log.scene.K[camera] for camera in cameras.values()]
    put(
        "camera_calibration",
        "CameraCalibrationComponent",
        {
            "key.camera_name": np.array(list(cameras), np.int8),
            **{f"intrinsic.{k}": [m[at] for m in K] for k, at in zip(("f_u", "f_v"), ((0, 0), (1, 1)))},
            **{f"intrinsic.{k}": [m[at, 2] for m in K] for k, at in (("c_u", 0), ("c_v", 1))},
            **{f"intrinsic.{k}": [lens[c][n] for c in cameras] for n, k in enumerate(("k1", "k2", "p1", "p2", "k3"))},
            "extrinsic.transform": [
                (log.mounted(camera) @ np.linalg.inv(to_waymo)).ravel().tolist() for camera in cameras.values()
            ],
            "width": [log.scene.sizes[camera][0] for camera in cameras.values()],
            "height": [log.scene.sizes[camera][1] for camera in cameras.values()],
        },
        transform=matrix,
    )
    shots = [(i, number) for i in frames for number in cameras]
    speeds = [(log.vehicle(i)[:3, 3] - log.vehicle(i, -0.03)[:3, 3]) / 0.03 for i, _ in shots]
    turns = [
        Rotation.from_matrix(log.vehicle(i)[:3, :3] @ log.vehicle(i, -0.03)[:3, :3].T).as_rotvec() / 0.03
        for i, _ in shots
    ]
    put(
        "camera_image",
        "CameraImageComponent",
        {
            stamp: [micros[i] for i, _ in shots],
            "key.camera_name": np.array([number for _, number in shots], np.int8),
            "image": [log.scene.cameras[cameras[number]].files[i].read_bytes() for i, number in shots],
            "pose.transform": [log.vehicle(i, -0.03).ravel().tolist() for i, _ in shots],
            **{f"velocity.linear_velocity.{k}": [v[n] for v in speeds] for n, k in enumerate("xyz")},
            **{f"velocity.angular_velocity.{k}": [v[n] for v in turns] for n, k in enumerate("xyz")},
            "pose_timestamp": [log.times[i] - 0.03 for i, _ in shots],
            "rolling_shutter_params.camera_trigger_time": [log.times[i] - 0.01 for i, _ in shots],
            "rolling_shutter_params.camera_readout_done_time": [log.times[i] + 0.01 for i, _ in shots],
        },
        transform=matrix,
    )
    level = LIDAR.copy()
    level[:3, :3] = np.eye(3)
    put(
        "lidar_calibration",
        "LiDARCalibrationComponent",
        {
            "key.laser_name": np.array([1, 2], np.int8),
            "extrinsic.transform": [level.ravel().tolist()] * 2,
            "beam_inclination.min": [-0.4, -0.2],
            "beam_inclination.max": [0.3, 0.2],
            "beam_inclination.values": [rigs.PANDASET.elevations().tolist(), None],
        },
        transform=matrix,
    )
    made = [_range_image(log, i, columns) for i in frames]
    shape = pa.list_(pa.int32(), 3)
    wide = {"values": pa.list_(pa.float32()), "shape": shape}
    put(
        "lidar",
        "LiDARComponent",
        {
            stamp: micros,
            "key.laser_name": np.ones(len(micros), np.int8),
            "range_image_return1.values": [image.ravel() for image, _ in made],
            "range_image_return1.shape": [list(image.shape) for image, _ in made],
            "range_image_return2.values": [None] * len(micros),
            "range_image_return2.shape": [None] * len(micros),
        },
        **wide,
    )
    put(
        "lidar_pose",
        "LiDARPoseComponent",
        {
            stamp: micros,
            "key.laser_name": np.ones(len(micros), np.int8),
            "range_image_return1.values": [pose.ravel() for _, pose in made],
            "range_image_return1.shape": [list(pose.shape) for _, pose in made],
        },
        **wide,
    )
    boxes = [(i, *box) for i in frames for box in log.boxes(i)]
    here = [np.linalg.inv(log.vehicle(box[0])) @ box[4] for box in boxes]
    put(
        "lidar_box",
        "LiDARBoxComponent",
        {
            stamp: [micros[box[0]] for box in boxes],
            "key.laser_object_id": [str(box[1]) for box in boxes],
            "type": np.array([WAYMO[str(box[2])] for box in boxes], np.int8),
            **{f"box.center.{k}": [pose[n, 3] for pose in here] for n, k in enumerate("xyz")},
            **{f"box.size.{k}": [box[3][n] for box in boxes] for n, k in enumerate("yxz")},
            "box.heading": [np.arctan2(pose[1, 0], pose[0, 0]) for pose in here],
        },
    )
    return root


def straightened(picture: np.ndarray, K: np.ndarray, to: np.ndarray) -> np.ndarray:
    """What OpenCV makes of a picture through LENS; K and `to` have the first pixel's centre at 0."""
    k1, k2, p1, p2, k3 = LENS
    return cv2.undistort(picture, K, np.array([k1, k2, p1, p2, k3]), None, to)
