"""The second stage of many pictures: landmarks, then what the pictures' own colours say, then light and skin."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from recon4d.head import HeadModel, with_uv
from torch import Tensor

from flame_encoder.encoder import identity, mouth, rendering, skin, vector
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.face_boxes import Where
from flame_encoder.encoder.trained import Encoder
from flame_encoder.encoder.vector import LIGHT
from flame_encoder.people import colours, explained, on_picture, refine
from flame_encoder.people.colours import Coloured
from flame_encoder.people.explained import Looked
from flame_encoder.people.refine import Belief, Picture
from flame_encoder.report import Report, unreported
from flame_encoder.tracker.photometric import Surface
from flame_encoder.tracker.points import Rig

Read = Callable[[int], np.ndarray]  # image i as RGB uint8 (H, W, 3)


def refined(
    encoder: Encoder,
    found: Encoding,
    faces: list[Where],
    picture: Read | None = None,
    report: Report = unreported,
) -> Encoding:
    """The solver on the landmarks of the images that have some, and on the images.

    Args:
        faces: of the N images. picture: reads them; None leaves light and skin, and what the image says of the shape.
    """
    rig = refine.rig_of(encoder.head, found.layout)
    rows = [i for i, face in enumerate(faces) if face.points is not None]
    head = rendering.reduced(with_uv(encoder.head))
    skin_of = None
    if rows and picture is not None and found.layout.detail >= vector.LIGHT and head.albedo_mean is not None:
        skin_of = colours.coloured(rig, head, found.layout.skin)
    done = 0
    for group in [rows] if found.person and rows else [[row] for row in rows]:
        found = _group(encoder, rig, skin_of, found, faces, group, picture)
        if picture is not None:
            found = _mouths(head, found, group, picture)
        done += len(group)
        report(done, "")
    return found


def _mouths(head: HeadModel, found: Encoding, group: list[int], picture: Read) -> Encoding:
    """What some images show of the inside of the mouth."""
    mouths = found.mouths
    for i in group:
        colours = mouth.seen(head, found, i, picture(i))
        if colours is None:
            return found
        if mouths is None or mouths is found.mouths:
            none = np.zeros((len(found.names), *colours.shape), np.uint8)
            mouths = none if mouths is None else mouths.copy()
        mouths[i] = colours
    return replace(found, mouths=mouths)


def _group(
    encoder: Encoder,
    rig: Rig,
    coloured: Coloured | None,
    found: Encoding,
    faces: list[Where],
    group: list[int],
    picture: Read | None,
) -> Encoding:
    """The pictures of one person."""
    S = rig.columns.n_shape
    sigma = None if encoder.measured is None else torch.from_numpy(encoder.measured.sigma.astype(np.float32))
    pictures = []
    for i in group:
        points = faces[i].points
        assert points is not None
        width, height = (int(x) for x in found.image_sizes[i])
        seen = refine.seen(points, (width, height), str(found.names[i]))
        answer, crop = torch.from_numpy(found.vectors[i]), torch.from_numpy(found.crops[i])
        pictures.append(refine.picture(rig, found.layout, found.view, answer, crop, sigma, seen))
    belief = belief_of(encoder, found, group, S)
    shape, own, covariance = refine.solve(pictures, belief)
    found = _written(rig, found, group, pictures, shape, own, covariance)
    if picture is None:
        return found
    head = rendering.reduced(with_uv(encoder.head))
    if coloured is not None:
        done = _explained(encoder, rig, coloured, found, group, pictures, shape, own, picture)
        if done is not None:
            return done
    surface = Surface(head)
    places = rig.points(surface.faces, surface.bary)
    for levels in on_picture.LEVELS:
        found = _skinned(encoder, head, found, group, picture)
        parts = found.parts(group)
        skins, lights = vector.albedo(head, parts), vector.light(parts)
        for k, i in enumerate(group):
            solved = torch.cat([shape, own[k]])
            on_picture.matched(pictures[k], surface, places, solved, picture(i), skins[k], lights[k], levels)
        begun = [replace(one, start=mine) for one, mine in zip(pictures, own)]
        shape, own, covariance = refine.solve(begun, belief, shape)
        found = _written(rig, found, group, pictures, shape, own, covariance)
    return _skinned(encoder, head, found, group, picture)


def _explained(
    encoder: Encoder,
    rig: Rig,
    surface: Coloured,
    found: Encoding,
    group: list[int],
    pictures: list[Picture],
    shape: Tensor,
    own: Tensor,
    picture: Read,
) -> Encoding | None:
    """What the colours of the face say; None where they lose it."""
    layout, S, C = found.layout, len(shape), surface.skins
    sigma = torch.full((LIGHT,), 0.5)
    if encoder.measured is not None:
        sigma = layout.split(torch.from_numpy(encoder.measured.sigma.astype(np.float32))[None])["detail"][0, :LIGHT]
    start = layout.size - layout.detail
    looked = [
        Looked(one, picture(i), torch.from_numpy(found.crops[i]), torch.from_numpy(found.raw[i, start:][:LIGHT]), sigma)
        for one, i in zip(pictures, group)
    ]
    answer = explained.explain(surface, looked, belief_of(encoder, found, group, S, C), shape, own)
    if answer is None:
        return None
    found = _written(rig, found, group, pictures, answer.shared[:S], answer.placed(), answer.covariance[:S, :S])
    everyone = slice(None) if found.person else group
    who = found.identity
    if who is None:
        who = vector.identity_of(layout, torch.from_numpy(found.vectors)).numpy()
    kept = np.r_[:S, layout.shape : layout.shape + C]
    mean, covariance = answer.shared.numpy(), answer.covariance.numpy()
    told, sure = found.told, found.identity_sigma
    if encoder.measured is not None:
        prior, mine = np.zeros(who.shape[1]), np.zeros(who.shape[1])
        prior[kept], mine[kept] = identity.prior_of(encoder.measured, len(prior))[kept], mean
        whole = np.eye(len(prior))
        whole[np.ix_(kept, kept)] = covariance
        rows = identity.told(prior, mine, whole, answer.doubt)
        told = np.zeros((len(who), *rows.shape), np.float32) if told is None else told.copy()
        told[everyone] = rows
        known = identity.known(prior, rows)
        mean, covariance = known.identity[kept], known.covariance[np.ix_(kept, kept)]
    places = np.ix_(range(len(who)) if found.person else group, kept)
    who = who.copy()
    who[places] = mean
    if sure is not None:
        sure = sure.copy()
        sure[places] = np.sqrt(np.diag(covariance))
    # A camera's tone and sheen, which the vector has no place for, are part of the light and the skin that it shows.
    return _skinned(encoder, surface.head, replace(found, identity=who, identity_sigma=sure, told=told), group, picture)


def _written(
    rig: Rig, found: Encoding, group: list[int], pictures: list[Picture], shape: Tensor, own: Tensor, covariance: Tensor
) -> Encoding:
    """The solver's answer in the file's terms."""
    vectors, focals, refined = found.vectors.copy(), found.focals.copy(), found.refined.copy()
    sure = None if found.identity_sigma is None else found.identity_sigma.copy()
    for i, mine, one in zip(group, own, pictures):
        answer, crop = torch.from_numpy(vectors[i]), torch.from_numpy(found.crops[i])
        solved, focals[i] = refine.vector_of(rig, found.layout, found.view, answer, crop, shape, mine, one)
        vectors[i], refined[i] = solved.numpy(), True
    everyone = slice(None) if found.person else group
    S = len(shape)
    vectors[everyone, :S] = shape.float().numpy()
    if sure is not None:
        sure[everyone, :S] = covariance.diagonal().sqrt().numpy()
    who = None if found.identity is None else found.identity.copy()
    if who is not None:
        who[everyone, :S] = vectors[everyone, :S]
    return replace(found, vectors=vectors, focals=focals, refined=refined, identity_sigma=sure, identity=who)


def belief_of(encoder: Encoder, found: Encoding, group: list[int], n: int, skins: int = 0) -> Belief:
    """What is believed of shape and albedo (n + skins,) beforehand: the encoder's answer, as sure as was measured."""
    start = found.layout.shape
    kept = [*range(n), *range(start, start + skins)]
    if encoder.measured is None:
        answer = vector.identity_of(found.layout, torch.from_numpy(found.vectors[group[:1]]))[0, kept].double()
        return Belief(answer, torch.eye(n + skins, dtype=torch.float64))
    answers = vector.identity_of(found.layout, torch.from_numpy(found.raw[group])).double().numpy()
    who = identity.combine(encoder.measured, answers)
    covariance = torch.from_numpy(who.covariance[np.ix_(kept, kept)])
    unknown = covariance.diagonal() == 0  # numbers that no drawn person has
    covariance = covariance + torch.diag(unknown.double() * 1e-4)
    return Belief(torch.from_numpy(who.identity[kept]), torch.linalg.inv(covariance))


def _skinned(encoder: Encoder, head: HeadModel, found: Encoding, group: list[int], picture: Read) -> Encoding:
    """Light and skin of some images from their colours; one skin where they show one person."""
    layout = found.layout
    if layout.detail < vector.LIGHT:
        return found
    sigma = torch.full((layout.detail,), 0.5)
    if encoder.measured is not None:
        sigma = layout.split(torch.from_numpy(encoder.measured.sigma.astype(np.float32))[None])["detail"][0]
    vectors = found.vectors.copy()
    start = layout.size - layout.detail
    for i in group:
        # What is believed is the network's answer, not what an earlier round made of it.
        believed = torch.from_numpy(found.raw[i, start:])
        image = torch.from_numpy(picture(i)).permute(2, 0, 1).float() / 255
        vectors[i, start:] = skin.fit(head, found, i, image, believed, sigma).numpy()
    if found.person:
        vectors[:, start + vector.LIGHT :] = vectors[group, start + vector.LIGHT :].mean(0)
    return replace(found, vectors=vectors)
