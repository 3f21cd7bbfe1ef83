"""Photos and videos of faces into frames, boxes, landmarks, crops and head mattes."""
