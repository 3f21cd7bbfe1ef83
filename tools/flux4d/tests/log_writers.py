"""A drawn street of `flux4d synth` in the layouts of nuScenes and Argoverse 2; waymo_writer.py has Waymo's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
from flux4d import pandaset, rigs, streets, synth, tables
from recon4d import images
from scipy.spatial.transform import Rotation

AXES = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # forward, left, up to right, forward, up
CITY = np.eye(4)  # the streets of a city are far from its origin
CITY[:3, :3], CITY[:3, 3] = Rotation.from_euler("z", 0.7).as_matrix(), [1200.0, -850.0, 31.0]
LIDAR = np.eye(4)  # LiDAR, right, forward, up, to the vehicle, forward, left, up
LIDAR[:3, :3], LIDAR[:3, 3] = AXES.T, [0.9, 0.1, 1.8]
NUSCENES = {"Car": "vehicle.car", "Bicycle": "vehicle.bicycle", "Pedestrian": "human.pedestrian.adult"}
ARGOVERSE = {"Car": "REGULAR_VEHICLE", "Bicycle": "BICYCLE", "Pedestrian": "PEDESTRIAN"}


@dataclass(frozen=True)
class Drawn:
    """The first frames of a scene with a second camera, and the street it is of."""

    scene: pandaset.Scene
    points: list[dict]
    cuboids: list[pandaset.Cuboids]
    street: streets.Street

    @property
    def times(self):
        return self.scene.lidar.times

    def vehicle(self, i, later=0.0):
        """(4, 4) vehicle to city some seconds after a frame's time."""
        time = self.times[i] - synth.EPOCH + later
        return CITY @ synth.ego_pose(self.street, time, rigs.PANDASET.lidar_height) @ np.linalg.inv(LIDAR)

    def mounted(self, camera, i=0):
        """(4, 4) camera, OpenCV's axes, to vehicle."""
        return np.linalg.inv(self.vehicle(i)) @ CITY @ self.scene.cameras[camera].poses[i]

    def boxes(self, i):
        """Per cuboid of a frame: its name, label, width length height, and pose in the city, x forward."""
        found = self.cuboids[i]
        forward = np.eye(4)
        forward[:3, :3] = AXES
        return list(zip(found.uuid, found.label, found.size, CITY @ found.pose @ forward, strict=True))


def drawn(folder: Path, seed: int, frames: int, all_frames: int, other: Path) -> Drawn:
    """A scene that `synth.write_scene` wrote; the pictures of its second camera go to the folder `other`."""
    scene = pandaset.open_scene(folder)
    front = scene.cameras["front_camera"]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", -35, degrees=True).as_matrix()
    turn[:3, 3] = [-0.3, 0.1, 0.2]
    other.mkdir(parents=True)
    files = []
    for i in range(frames):
        picture = images.read(front.files[i])
        files.append(other / f"{i:02d}.jpg")
        images.write(files[-1], np.ascontiguousarray(picture[:, ::-1]))
    K = scene.K["front_camera"]
    sensors = {
        "front_camera": pandaset.Sensor(front.poses[:frames], front.times[:frames], front.files[:frames]),
        "front_left_camera": pandaset.Sensor(front.poses[:frames] @ turn, front.times[:frames], files),
    }
    lidar = pandaset.Sensor(scene.lidar.poses[:frames], scene.lidar.times[:frames], scene.lidar.files[:frames])
    wide = K * np.array([[0.8, 1, 1], [1, 0.8, 1], [1, 1, 1]]) + np.array([[0, 0, 2.25], [0, 0, -1.5], [0, 0, 0]])
    sizes = dict.fromkeys(sensors, scene.sizes["front_camera"])
    scene = replace(scene, lidar=lidar, cameras=sensors, K={"front_camera": K, "front_left_camera": wide}, sizes=sizes)
    columns = [tables.read(path, pandaset.POINT_COLUMNS) for path in lidar.files]
    points = [{"xyz": np.stack([found[k] for k in "xyz"], -1), **found} for found in columns]
    boxes = [pandaset.read_cuboids(path) for path in scene.cuboids[:frames]]
    return Drawn(scene, points, boxes, streets.random_street(seed, all_frames * synth.PERIOD))


def quaternion(matrix, order="wxyz"):
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
    return [w, x, y, z]


def moved(points, matrix):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def write_nuscenes(root: Path, scenes: dict[str, Drawn], every: int = 5) -> Path:
    """Scenes by name; each `every`-th frame is a key frame, whose things are labelled."""
    rows = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")}
    rows |= {"sample_annotation": [], "instance": [], "category": []}
    channels = {"lidar": "LIDAR_TOP", "front_camera": "CAM_FRONT", "front_left_camera": "CAM_FRONT_LEFT"}
    for channel in ("LIDAR_TOP", "CAM_FRONT", "CAM_FRONT_LEFT", "RADAR_FRONT"):
        rows["sensor"].append({"token": f"sensor {channel}", "channel": channel, "modality": "x"})
    rows["category"] = [{"token": f"is {name}", "name": name, "description": ""} for name in NUSCENES.values()]
    for name, log in scenes.items():
        rows["scene"].append({"token": f"of {name}", "name": name, "nbr_samples": 2, "description": "a street"})
        keys = list(range(0, len(log.times), every))
        for i in keys:
            time = round(log.times[i] * 1e6)
            rows["sample"].append({"token": f"{name} sample {i}", "scene_token": f"of {name}", "timestamp": time})
            for thing, _, size, pose in log.boxes(i):
                rows["sample_annotation"].append(
                    {
                        "token": f"{name} {i} {thing}",
                        "sample_token": f"{name} sample {i}",
                        "instance_token": f"{name} {thing}",
                        "translation": pose[:3, 3].tolist(),
                        "size": size.tolist(),
                        "rotation": quaternion(pose),
                    }
                )
        for thing, label, *_ in log.boxes(0):
            rows["instance"].append({"token": f"{name} {thing}", "category_token": f"is {NUSCENES[label]}"})
        for what, channel in channels.items():
            mounted = LIDAR if what == "lidar" else log.mounted(what)
            K = []
            if what != "lidar":
                K = (log.scene.K[what] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]).tolist()
            rows["calibrated_sensor"].append(
                {
                    "token": f"{name} {channel}",
                    "sensor_token": f"sensor {channel}",
                    "translation": mounted[:3, 3].tolist(),
                    "rotation": quaternion(mounted),
                    "camera_intrinsic": K,
                }
            )
            for i, time in enumerate(log.times):
                kind = "samples" if i in keys else "sweeps"
                suffix = "pcd.bin" if what == "lidar" else "jpg"
                file = f"{kind}/{channel}/{name}__{channel}__{round(time * 1e6)}.{suffix}"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                if what == "lidar":
                    here = moved(log.points[i]["xyz"], np.linalg.inv(log.vehicle(i) @ LIDAR) @ CITY)
                    ring = np.zeros(len(here))
                    content = np.stack([*here.T, log.points[i]["i"], ring], 1).astype("<f4").tobytes()
                else:
                    content = log.scene.cameras[what].files[i].read_bytes()
                (root / file).write_bytes(content)
                token = f"{name} {channel} {i}"
                pose = log.vehicle(i)
                following = next((key for key in keys if key >= i), keys[-1])
                rows["ego_pose"].append(
                    {"token": token, "timestamp": 0, "translation": pose[:3, 3].tolist(), "rotation": quaternion(pose)}
                )
                rows["sample_data"].append(
                    {
                        "token": token,
                        "sample_token": f"{name} sample {following}",
                        "ego_pose_token": token,
                        "calibrated_sensor_token": f"{name} {channel}",
                        "filename": file,
                        "timestamp": round(time * 1e6),
                        "is_key_frame": i in keys,
                    }
                )
    (root / "v1.0-mini").mkdir()
    for name, table in rows.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(table[::-1]))  # in no order
    return root


def _poses_table(poses):
    q = np.array([quaternion(pose) for pose in poses]).reshape(-1, 4)
    table = {f"q{k}": q[:, n] for n, k in enumerate("wxyz")}
    return table | {f"t{k}_m": np.array([pose[n, 3] for pose in poses], float) for n, k in enumerate("xyz")}


def write_argoverse2(root: Path, log: Drawn) -> Path:
    """A log; the points are half precision, as Argoverse's are."""
    names = {"front_camera": "ring_front_center", "front_left_camera": "ring_front_left"}
    (root / "sensors" / "lidar").mkdir(parents=True)
    (root / "calibration").mkdir()
    stamps = [round(time * 1e9) for time in log.times]

    def put(path, columns, **types):
        fields = {name: pa.array(column, types.get(name)) for name, column in columns.items()}
        pyarrow.feather.write_feather(pa.table(fields), str(root / path), compression="zstd")

    for i, stamp in enumerate(stamps):
        found = log.points[i]
        here = moved(found["xyz"], np.linalg.inv(log.vehicle(i)) @ CITY).astype(np.float16)
        offsets = np.round((found["t"] - log.times[i]) * 1e9).astype(np.int32)
        columns = dict(zip("xyz", here.T)) | {"intensity": found["i"].astype(np.uint8), "offset_ns": offsets}
        put(f"sensors/lidar/{stamp}.feather", columns | {"laser_number": np.zeros(len(here), np.uint8)})
    for camera, name in names.items():
        (root / "sensors" / "cameras" / name).mkdir(parents=True)
        for stamp, file in zip(stamps, log.scene.cameras[camera].files):
            (root / "sensors" / "cameras" / name / f"{stamp}.jpg").write_bytes(file.read_bytes())
    K = [log.scene.K[camera] for camera in names]
    put(
        "calibration/intrinsics.feather",
        {
            "sensor_name": list(names.values()),
            "fx_px": [k[0, 0] for k in K],
            "fy_px": [k[1, 1] for k in K],
            "cx_px": [k[0, 2] - 0.5 for k in K],
            "cy_px": [k[1, 2] - 0.5 for k in K],
            **{f"k{n}": [0.1, -0.2] for n in (1, 2, 3)},  # of the lens; the pictures are straight
            "height_px": np.array([log.scene.sizes[camera][1] for camera in names], np.uint16),
            "width_px": np.array([log.scene.sizes[camera][0] for camera in names], np.uint16),
        },
    )
    sensors = [*(log.mounted(camera) for camera in names), LIDAR]
    put(
        "calibration/egovehicle_SE3_sensor.feather",
        {"sensor_name": [*names.values(), "up_lidar"], **_poses_table(sensors)},
    )
    put(
        "city_SE3_egovehicle.feather",
        {"timestamp_ns": stamps[::-1], **_poses_table([log.vehicle(i) for i in range(len(stamps))][::-1])},
    )
    boxes = [(stamps[i], *box) for i in range(len(stamps)) for box in log.boxes(i)]
    here = [np.linalg.inv(log.vehicle(stamps.index(box[0]))) @ box[4] for box in boxes]
    put(
        "annotations.feather",
        {
            "timestamp_ns": [box[0] for box in boxes],
            "track_uuid": [str(box[1]) for box in boxes],
            "category": [ARGOVERSE[str(box[2])] for box in boxes],
            **{f"{k}_m": [box[3][n] for box in boxes] for n, k in enumerate(("width", "length", "height"))},
            **_poses_table(here),
        },
    )
    return root
