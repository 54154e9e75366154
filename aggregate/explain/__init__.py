"""Explanations: what a prediction was made of, down to the pixels, and whether that can be believed.

A run weighs slices (`slice_attention`), an encoder's maps say where in a slice it looked (`class_attention`, `gradcam`,
`occlusion`, `endpoint_gradient`), and the product of both is a saliency volume in the scan's own voxels (`saliency`).
`explain` makes one `Explanation` of one scan and writes it as pictures, tables, NIfTI and DICOM. `evaluate` asks over a
cohort with marked lesions how often the attended slice and the brightest voxel hold one (`correctness`), beside
baselines that know nothing, and whether the maps fall apart when what they explain is destroyed (`sanity`).
"""
